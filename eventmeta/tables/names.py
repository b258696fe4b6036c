"""The names of a store's tables, and the options that set them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TypedDict

from eventmeta.core.errors import InvalidIdentifier
from eventmeta.core.validation import MAX_TABLE_NAME, check_flag, check_table_name

RESERVED_ENDINGS = ("_building", "_retired")
"""The endings of tables that will replace others, and of tables that were replaced."""


class TableOptions(TypedDict, total=False):
    """Keyword arguments of sessions and stores for the names of their tables.

    Names that are left out follow from the first two, so that two pairs of sessions and messages in
    one database share nothing: ``app_sessions`` and ``app_messages`` go with ``app_events``,
    ``app_users`` and so on. If a pair has other names, the names that
    follow begin with the name of the sessions table and a digest of both.

    Attributes:
        sessions_table: Upstream's table of sessions.
        messages_table: Upstream's table of items.
        session_metadata_table: The table of current metadata.
        users_table: The table of users.
        structured_metadata: Whether the next three tables are kept as well. None: as the database
            has it; a new database does not keep them.
        conversation_table: The table of messages, turn by turn.
        tool_calls_table: The table of tool calls, each with its output.
        usage_table: The table of tokens used.
        events_table: The log.
        streams_table: The heads of the log's streams.
        metadata_changes_view: The view of the log, one row per changed key.
        checkpoints_table: The position that each asynchronous projection and subscription has
            reached.
        parked_streams_table: The streams at which a projection has failed.
        settings_table: The version of the schema, and whether the structured tables are kept.
    """

    sessions_table: str
    messages_table: str
    session_metadata_table: str
    users_table: str
    structured_metadata: bool | None
    conversation_table: str
    tool_calls_table: str
    usage_table: str
    events_table: str
    streams_table: str
    metadata_changes_view: str
    checkpoints_table: str
    parked_streams_table: str
    settings_table: str


@dataclass(frozen=True)
class TableNames:
    """The names of the tables; the defaults of the first two are upstream's.

    A name that is left empty follows from the first two.

    Raises:
        InvalidIdentifier: A name is too long, or has characters other than letters, digits and
            underscores.
    """

    sessions_table: str = "agent_sessions"
    messages_table: str = "agent_messages"
    session_metadata_table: str = ""
    users_table: str = ""
    structured_metadata: bool | None = None
    conversation_table: str = ""
    tool_calls_table: str = ""
    usage_table: str = ""
    events_table: str = ""
    streams_table: str = ""
    metadata_changes_view: str = ""
    checkpoints_table: str = ""
    parked_streams_table: str = ""
    settings_table: str = ""

    @classmethod
    def of(cls, options: TableOptions) -> TableNames:
        """Return the names for ``options``, in which no name may be empty."""
        for name, value in options.items():
            if name in _BESIDE:
                check_table_name(value)
        return cls(**options)

    def __post_init__(self) -> None:
        """Complete the names, and check each, because they become part of statements."""
        pair = check_table_name(self.sessions_table), check_table_name(self.messages_table)
        for name, value in names_beside(*pair).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        options = asdict(self)
        if (structured := options.pop("structured_metadata")) is not None:
            check_flag("structured_metadata", structured)
        names = [check_table_name(name) for name in options.values()]
        for name in names:
            if names.count(name) > 1:
                raise InvalidIdentifier(
                    "table name", name, "is given to two tables: give each its own"
                )


_BESIDE = {
    "session_metadata_table": "sessions_metadata",
    "users_table": "users",
    "conversation_table": "conversation_messages",
    "tool_calls_table": "tool_calls",
    "usage_table": "usage",
    "events_table": "events",
    "streams_table": "streams",
    "metadata_changes_view": "metadata_changes",
    "checkpoints_table": "checkpoints",
    "parked_streams_table": "parked_streams",
    "settings_table": "store_settings",
}
"""The part of each name after the prefix of the pair, by option."""

_MAX_PREFIX = MAX_TABLE_NAME - 1 - max(map(len, _BESIDE.values()))


def names_beside(sessions: str, messages: str) -> dict[str, str]:
    """Return the names of all other tables beside the two given ones, by option."""
    prefix = sessions.removesuffix("_sessions")
    pair = (f"{prefix}_sessions", f"{prefix}_messages")
    if (sessions, messages) != pair or not 0 < len(prefix) <= _MAX_PREFIX:
        # Most databases ignore the case of names.
        digest = hashlib.sha256(f"{sessions}.{messages}".lower().encode()).hexdigest()[:8]
        prefix = f"{sessions[: _MAX_PREFIX - 9]}_{digest}"
    return {option: f"{prefix}_{ending}" for option, ending in _BESIDE.items()}
