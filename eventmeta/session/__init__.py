"""One conversation, as the Agents SDK uses it.

metadata_session  `MetadataSession`, put together from the parts below
sqlite_session    `SQLiteSession`, which is given a file
handle            the session and its database: what every part starts from
arguments         the arguments of all of them
binding           the user of a session
items             items: upstream's protocol
compaction        replacing items by a summary
metadata          metadata of a session
stream_metadata   metadata of a session or a user, and their history
ownership         making, finding and transferring sessions of users
conversation      the conversation turn by turn
turns             cutting a conversation between turns
usage             tokens used by runs
usage_ledger      counting each token once
resumed_runs      which run a usage belongs to
hooks             hooks that tell agent, model and response
"""
