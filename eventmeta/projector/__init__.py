"""Projections that follow the log.

worker          `Projector`: keeps projections up to date
catch_up        applies what is new
target          a projection with its tables
transactions    events are applied, and then the checkpoint is saved
checkpoints     how far each projection is, and its lease
lease           taking, renewing and releasing a lease
parked_streams  streams at which a projection has failed
rebuild         building a table again from the whole log
shadow_tables   the tables that are built
swap            they take the place of the live ones
throttle        pauses in which others write
progress        what a rebuild tells of itself
replay          folding a part of the log without touching the live tables
subscription    a named reader of the log
status          how far everything is
"""
