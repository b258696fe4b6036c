"""The errors about the database and its driver."""

from __future__ import annotations

from typing import Any

from eventmeta.core.errors import EventMetaError

__all__ = [
    "CorruptEvent",
    "DatabaseBusy",
    "DatabaseFailure",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "OutcomeUnknown",
    "SettingsConflict",
    "StandbyServer",
    "TablesMissing",
    "UnexpectedRowCount",
    "UnsupportedEngine",
    "UnsupportedSchema",
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


class DatabaseRefused(DatabaseFailure):
    """The database refused the change by a rule of its own; nothing was changed.

    Examples are a foreign key, a check, a column that must not be NULL, a trigger, and a missing
    right. Trying again does not help: change the rule, the right, or the data that it forbids.

    Attributes:
        code: The SQLSTATE (PostgreSQL) or error number (SQLite, MySQL).
        constraint: The name of the constraint, if the database names it.
        table: The table that has the rule, if the database names it; for a foreign key, the table
            that has the key.
    """

    def __init__(
        self,
        message: str,
        code: Any = None,
        constraint: str | None = None,
        table: str | None = None,
    ) -> None:
        self.constraint = constraint
        self.table = table
        super().__init__(message, code)


class UnsupportedSchema(DatabaseFailure):
    """An existing table or column cannot hold exactly what the store writes.

    Nothing was written. The message lists everything that is wrong, and how to correct it.

    Attributes:
        table: The first table that is unsuitable.
        column: Its column, or None if it is the table itself.
        statements: The SQL that corrects all of it, in order; empty if SQL alone cannot.
    """

    def __init__(
        self, message: str, table: str, column: str | None, statements: tuple[str, ...] = ()
    ) -> None:
        self.table = table
        self.column = column
        self.statements = statements
        super().__init__(message)


class SettingsConflict(DatabaseFailure):
    """The options with which the store was opened contradict the database."""


class UnexpectedRowCount(DatabaseFailure):
    """A statement changed more or fewer rows than it should have; all of it was undone.

    A trigger, a rule or a policy of the database may keep rows from being written or deleted. The
    statement was tried again before this was raised, except inside the caller's own transaction.

    Attributes:
        expected: The number of rows that it should have changed.
        actual: The number of rows that it changed.
    """

    def __init__(self, statement: str, expected: int, actual: int) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"a statement changed {actual} rows and not {expected}, so it was undone: look for a "
            f"trigger, rule or policy on the table in: {statement}"
        )


class CorruptEvent(DatabaseFailure):
    """A row of the log is no longer a valid event: it was changed outside the store.

    Triggers make the log refuse changes. So the change went round the triggers, or the storage is
    damaged. Restore the row from a backup. The current state is in other tables and can still be
    read.

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
    """The change conflicts with other writers; nothing was changed. Try again later.

    The change was retried for some seconds, except inside the caller's own transaction: there the
    caller repeats the whole transaction. The error is also raised if the server had no connection
    to give for ``retry_for`` seconds, or the engine's pool had none. Each attempt waits for the
    pool as long as its own ``pool_timeout`` says, but all together no longer than ``timeout``. The
    error is raised at once if a statement was cancelled from outside, or exceeded a time limit that
    is set for the server or the driver.

    Attributes:
        held: Whether another client's open transaction holds the session or user.
    """

    def __init__(self, message: str, code: Any = None, *, held: bool = False) -> None:
        self.held = held
        super().__init__(message, code)


class OutcomeUnknown(DatabaseFailure):
    """The change was sent, but no answer came in time: it may or may not be recorded.

    Calling again with the same ``event_id`` is safe: a change that is recorded is not made twice.
    """


class DatabaseUnavailable(DatabaseFailure):
    """The database cannot be reached, or cannot work at present; nothing was changed.

    The server does not answer, refuses connections, has no space or memory left, or is read-only.
    The message gives the server's address, without the password. A server that refuses was tried
    for ``retry_for`` seconds, one that does not answer for ``timeout`` seconds.
    """


class StandbyServer(DatabaseFailure):
    """The server is a standby, which cannot tell up to which position its log is complete.

    The feed, the horizon, projectors and replays need the primary. The present state of sessions
    and users, and the history of one session or user, may be read on a standby.
    """

    def __init__(self) -> None:
        super().__init__(
            "this server is a standby, which cannot tell up to where its log is complete: open the "
            "store on the primary to follow the feed or to keep projections"
        )


def is_of_statement(failure: DatabaseFailure) -> bool:
    """Return whether ``failure`` would be the same each time the statement is tried."""
    return type(failure) in (DatabaseFailure, DatabaseRefused)
