"""What eventmeta raises about the database and its driver."""

from __future__ import annotations

from typing import Any

from eventmeta.errors import EventMetaError

__all__ = [
    "DatabaseBusy",
    "DatabaseFailure",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "OutcomeUnknown",
    "StandbyServer",
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
    """A table of the store does not exist in this database."""

    def __init__(self, detail: str, code: Any = None) -> None:
        super().__init__(
            f"{detail}: create the tables once with `await store.create_tables()`, or open the "
            "session with create_tables=True",
            code,
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


class DatabaseRefused(DatabaseFailure):
    """The database refused the change by a rule of its own; nothing was changed.

    The rule is a foreign key, a check, a trigger, or a right that the role lacks. To try again is
    in vain until the rule or the change is another one.
    """


class DatabaseUnavailable(DatabaseFailure):
    """The database cannot do its work at present; nothing was changed. Try again later.

    It refuses connections, has no space or memory left, or can only be read.
    """


class StandbyServer(DatabaseFailure):
    """The server is a standby, which cannot tell up to where its log is complete.

    The feed, the horizon, projectors and replays need the primary. What sessions and users are at
    present, and the history of one, may be read on a standby.
    """

    def __init__(self) -> None:
        super().__init__(
            "this server is a standby, which cannot tell up to where its log is complete: open the "
            "store on the primary to follow the feed or to keep projections"
        )


def is_of_statement(failure: DatabaseFailure) -> bool:
    """Return whether ``failure`` comes again however often the same is tried."""
    return type(failure) in (DatabaseFailure, DatabaseRefused)
