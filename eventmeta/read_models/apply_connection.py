"""The connection that a projection in plain Python is given."""

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
    "store commits. To go on after an error, have the statement that may fail in "
    "`async with connection.begin_nested():`"
)

Refuse = Callable[[str], NoReturn]
"""Raises the error about what was called."""


class ApplyConnection(AsyncConnection):
    """A connection whose transaction is not its user's to end."""

    def __init__(self, connection: AsyncConnection, refuse: Refuse) -> None:
        super().__init__(connection.engine, connection.sync_connection)
        self._refuse = refuse

    def begin(self) -> NoReturn:
        """Refuse: the transaction has begun."""
        self._refuse("begin()")

    async def commit(self) -> NoReturn:
        """Refuse."""
        self._refuse("commit()")

    async def rollback(self) -> NoReturn:
        """Refuse."""
        self._refuse("rollback()")

    async def close(self) -> NoReturn:
        """Refuse."""
        self._refuse("close()")

    async def aclose(self) -> NoReturn:
        """Refuse."""
        self._refuse("aclose()")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:
        """Refuse."""
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
    """Yield ``connection`` as one that refuses to end its transaction, until the end of the block.

    What goes round its methods is refused as well: SQLAlchemy's connection below, and statements.

    Args:
        connection: With a transaction that has begun.
        dialect: Of the database.
        refuse: Raises the error.
        errors: Takes each error that the database gives, even if it does not come out of the block.
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
