"""The connection that a projection in plain Python gets, which cannot end its transaction."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.base import Dialect

REMEDY = (
    "would end the transaction that the log and the checkpoint share with it: leave that out, the "
    "store commits. To go on after an error, run the statement that may fail in "
    "`async with connection.begin_nested():`"
)

Refuse = Callable[[str], NoReturn]
"""A function that raises the error about the refused call, which it is given as text."""


class ApplyConnection(AsyncConnection):
    """A connection that refuses to end its transaction."""

    def __init__(self, connection: AsyncConnection, refuse: Refuse) -> None:
        super().__init__(connection.engine, connection.sync_connection)
        self._refuse = refuse

    def begin(self) -> NoReturn:
        """Refuse to begin a transaction, as one has begun."""
        self._refuse("begin()")

    async def commit(self) -> NoReturn:
        """Refuse to commit."""
        self._refuse("commit()")

    async def rollback(self) -> NoReturn:
        """Refuse to roll back."""
        self._refuse("rollback()")

    async def close(self) -> NoReturn:
        """Refuse to close the connection."""
        self._refuse("close()")

    async def aclose(self) -> NoReturn:
        """Refuse to close the connection."""
        self._refuse("aclose()")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:
        """Refuse to invalidate the connection."""
        self._refuse("invalidate()")


_watched: WeakKeyDictionary[Connection, list[BaseException]] = WeakKeyDictionary()


def _note(context: ExceptionContext) -> None:
    if context.connection is not None and context.connection in _watched:
        _watched[context.connection].append(context.original_exception)


@contextmanager
def lent(
    connection: AsyncConnection,
    dialect: Dialect,
    refuse: Refuse,
    errors: list[BaseException],
) -> Generator[ApplyConnection]:
    """Yield ``connection`` as an `ApplyConnection` for the block.

    Other ways to end the transaction are refused as well: through SQLAlchemy's connection below,
    and by a statement.

    Args:
        connection: A connection whose transaction has begun.
        dialect: The dialect of the database.
        refuse: Raises the error about a refused call.
        errors: Collects each error of the database, even if the block catches it.
    """

    def ending(_: Any) -> None:
        refuse("a commit() or rollback()")

    def executing(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if dialect.ends_transaction(statement):
            refuse(f"{' '.join(statement.split())[:60]!r}")

    listeners: dict[str, Callable[..., Any]] = {
        "commit": ending,
        "rollback": ending,
        "before_cursor_execute": executing,
    }
    below = connection.sync_connection
    assert below is not None
    if not event.contains(below.engine, "handle_error", _note):
        event.listen(below.engine, "handle_error", _note)
    for name, listener in listeners.items():
        event.listen(below, name, listener)
    _watched[below] = errors
    try:
        yield ApplyConnection(connection, refuse)
    finally:
        del _watched[below]
        for name, listener in listeners.items():
            event.remove(below, name, listener)
