"""One conversation, as the Agents SDK uses it.

metadata_session  `MetadataSession`, put together from the parts below
sqlite_session    `SQLiteSession`, which takes a file
handle            the session and its database: the base of all other parts
arguments         the keyword arguments that open a session
binding           the user of a session
items             items: upstream's protocol
compaction        replacing items by a summary
metadata          metadata of a session
stream_metadata   metadata of a session or a user, and their history
ownership         creating, finding and transferring sessions of users
conversation      the conversation turn by turn
turns             cutting a conversation between turns
usage             tokens used by runs
usage_ledger      counting each token once
resumed_runs      finding the run that a usage belongs to
hooks             hooks that record agent, model and response
"""
