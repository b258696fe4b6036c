"""Commands become events.

event_log            commands in, events out: the log that sessions and stores share
writer               group commit
lanes                queues of commands for a stream that another transaction holds
appender             carrying out a batch, with retries
inline               projections in plain Python, in the same transaction
batch                a batch of any commands as one transaction
owning               locking the heads of a batch
batch_items          writing the items of a batch
fast_path            a batch of unconditional appends as one statement
fast_path_statement  that statement
pending_event        events that are not written yet
stream_head          heads of streams, and the events that ownership adds
statements           the statements of a batch
commands             the commands to a stream
arrow                the log as Arrow
"""
