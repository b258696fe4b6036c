"""Projections that follow the log.

worker          `Projector`: keeps projections up to date
catch_up        applying new events
target          a projection with its tables
transactions    applying events, then saving the checkpoint
checkpoints     the checkpoint of each projection, and its lease
lease           taking, renewing and releasing a lease
parked_streams  streams at which a projection has failed
rebuild         building a table again from the whole log
shadow_tables   the new tables that a rebuild fills
swap            replacing the live tables by the shadow tables
throttle        pauses in which other writers get their turn
progress        the progress and the result of a rebuild
replay          folding a part of the log without touching the live tables
subscription    a named reader of the log
status          how far the log, projections and subscriptions are
"""
