"""What eventmeta raises about the database and its driver."""

from __future__ import annotations

from typing import Any

from eventmeta.errors import EventMetaError

__all__ = [
    "CorruptEvent",
    "DatabaseBusy",
    "DatabaseFailure",
    "OutcomeUnknown",
    "TablesMissing",
    "UnsupportedEngine",
]


class UnsupportedEngine(EventMetaError):
    """There is no dialect for this engine's database or driver."""


class DatabaseFailure(EventMetaError):
    """The database or its driver failed.

    Attributes:
        code: The SQLSTATE (PostgreSQL) or error number (SQLite, MySQL), if there was one.
    """

    def __init__(self, message: str, code: Any = None) -> None:
        self.code = code
        super().__init__(message)


class TablesMissing(DatabaseFailure):
    """A table of the store, or a column that a newer version added, is not in this database."""

    def __init__(self, detail: str, code: Any = None) -> None:
        super().__init__(
            f"{detail}: create what is missing once with `await store.create_tables()`, open the "
            "store or session with create_tables=True, or run the script that `await "
            "store.schema_sql()` returns",
            code,
        )


class CorruptEvent(DatabaseFailure):
    """A row of the log is not an event any more: somebody has changed it.

    The log refuses changes by triggers, so somebody went round them, or the storage is damaged.
    Restore the row from a backup. Current state is in tables of its own and can be read.

    Attributes:
        position: The position of the row.
        stream_id: Its stream.
        version: Its version in the stream.
    """

    def __init__(self, position: object, stream_id: object, version: object, problem: str) -> None:
        self.position = position
        self.stream_id = stream_id
        self.version = version
        super().__init__(
            f"the event at position {position} of the log (version {version} of {stream_id!r}) "
            f"{problem}: restore this row from a backup"
        )


class DatabaseBusy(DatabaseFailure):
    """In conflict with other writers; nothing was changed. Try again later.

    It was retried for some seconds, except inside a transaction of the caller's: there the caller
    repeats the whole transaction. Also raised, at once, where a statement was cancelled from
    outside, or the engine's pool had no connection to give.
    """


class OutcomeUnknown(DatabaseFailure):
    """The connection was lost and could not be had again: the change may or may not be recorded.

    Calling again with the same ``event_id`` is safe: a recorded change is not made twice.
    """
