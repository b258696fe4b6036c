"""Everything that knows no database.

errors             errors about a call
database_errors    errors about the database and its driver
projection_errors  errors about projections
events             events before and after they are recorded; the identity of a stream
canonical_json     JSON as the log keeps it: checked, canonical, exact
validation         checks of arguments, before any I/O
principal          on whose behalf a call is made, and what that principal can see
actor              the current actor: who is writing, and why
as_of              points in the past
clocks             the time at which an event is recorded
usage              sums of tokens
large_inputs       encoding large inputs without stopping the event loop
write_order        the order of writes that are still being prepared
deadline           the moment by which a call has ended
timeouts           time limits of the calls that wait, with one timer
per_loop           one object for each event loop
contexts           running work in the context of another task
settle             waiting for an outcome even if the caller is cancelled
signals            waking up tasks that wait for events
gate               the operations in progress, so that closing can wait for them
"""
