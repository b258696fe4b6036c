"""What eventmeta raises about the database and its driver."""

from __future__ import annotations

from typing import Any

from eventmeta.errors import EventMetaError

__all__ = [
    "DatabaseBusy",
    "DatabaseFailure",
    "DatabaseUnavailable",
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
    repeats the whole transaction. Also raised where the server or the engine's pool had no
    connection to give for ``retry_for`` seconds, and, at once, where a statement was cancelled from
    outside or was over a limit of time that is set for the server or the driver.
    """


class DatabaseUnavailable(DatabaseFailure):
    """The server does not answer, or refuses connections; nothing was changed.

    The message says where it was looked for, without the password. A server that refuses was asked
    for ``retry_for`` seconds, one that does not answer for ``timeout`` seconds.
    """


class OutcomeUnknown(DatabaseFailure):
    """A change was sent, and no answer came in time: it may or may not be recorded.

    Calling again with the same ``event_id`` is safe: a recorded change is not made twice.
    """
