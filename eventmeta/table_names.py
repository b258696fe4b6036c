"""What the tables of a store are called."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypedDict

from eventmeta.errors import InvalidIdentifier
from eventmeta.identifiers import check_flag, check_table_name

RESERVED_ENDINGS = ("_building", "_retired")
"""What the tables are called that take the place of others, and those that had it."""


class TableOptions(TypedDict, total=False):
    """Keyword arguments of sessions and stores: what their tables are called.

    Attributes:
        sessions_table: Upstream's table of sessions.
        messages_table: Upstream's table of items.
        session_metadata_table: The table of current metadata.
        users_table: The table of users.
        structured_metadata: Keep the next three tables as well.
        conversation_table: The table of messages, turn by turn.
        tool_calls_table: The table of tool calls, each with its output.
        usage_table: The table of tokens used.
        events_table: The log.
        streams_table: The heads of the log's streams.
        metadata_changes_view: The view of the log, one row per changed key.
        checkpoints_table: How far each asynchronous projection and subscription is.
        parked_streams_table: The streams at which a projection has failed.
    """

    sessions_table: str
    messages_table: str
    session_metadata_table: str
    users_table: str
    structured_metadata: bool
    conversation_table: str
    tool_calls_table: str
    usage_table: str
    events_table: str
    streams_table: str
    metadata_changes_view: str
    checkpoints_table: str
    parked_streams_table: str


@dataclass(frozen=True)
class TableNames:
    """What the tables are called; the first two as upstream calls them.

    Raises:
        InvalidIdentifier: A name is not letters, digits and underscores, or too long.
    """

    sessions_table: str = "agent_sessions"
    messages_table: str = "agent_messages"
    session_metadata_table: str = "agent_sessions_metadata"
    users_table: str = "agent_users"
    structured_metadata: bool = False
    conversation_table: str = "agent_conversation_messages"
    tool_calls_table: str = "agent_tool_calls"
    usage_table: str = "agent_usage"
    events_table: str = "agent_events"
    streams_table: str = "agent_streams"
    metadata_changes_view: str = "agent_metadata_changes"
    checkpoints_table: str = "agent_checkpoints"
    parked_streams_table: str = "agent_parked_streams"

    def __post_init__(self) -> None:
        """Check every name, for they become part of statements."""
        options = asdict(self)
        check_flag("structured_metadata", options.pop("structured_metadata"))
        names = [check_table_name(name) for name in options.values()]
        for name in names:
            if names.count(name) > 1:
                raise InvalidIdentifier(
                    "table name", name, "is given to two tables: give each its own"
                )
