"""The dialect of SQLite in memory: one connection, which the app and the store share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.sqlite.driver import (
    WATCH,
    SharedConnectionBusy,
    SQLite,
    begin_watched,
    end_watched,
)
from eventmeta.dialects.sqlite.thread import run_in_connection_thread
from eventmeta.dialects.statement import Query, Row
from eventmeta.dialects.streams import LOCK_TIMEOUT_MS

_within: ContextVar[object] = ContextVar("eventmeta_within", default=None)
"""The store's transaction in which the current code runs, if any."""


class SharedSQLite(SQLite):
    """The dialect of SQLite in memory, where readers wait for transactions too.

    Without the wait they would see changes that are not committed yet.

    The store does not guard the app's own transactions. Giving the connection back to the pool
    rolls back what is open on it.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._open: object = None

    @property
    def is_within(self) -> bool:
        return self._open is not None and _within.get() is self._open

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        if self.is_within:
            return await super().read(queries)
        async with self._turn():
            return await super().read(queries)

    async def _read_through(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """Read around SQLAlchemy if a transaction is open; SQLAlchemy would roll it back."""
        if await self._in_thread(lambda connection, _: connection.in_transaction):
            return await self._read_at_once(queries)
        return await super()._read_through(queries)

    def explain_lost_savepoint(self, error: Exception) -> Exception:
        """Return a conflict: other code has ended the transaction."""
        busy = SharedConnectionBusy("someone else ended the transaction")
        busy.__cause__ = error
        return busy

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        """Begin in SQL first: SQLAlchemy's begin would roll back a transaction of other code.

        A listener of the app's comes before that, because it may begin the transaction itself.
        """
        options = self.own_engine.sync_engine.get_execution_options()
        # Setting an isolation level commits what is open.
        listener_first = self.is_watched or "isolation_level" in options
        async with self._turn():
            try:
                await self._in_thread(_check_free if listener_first else _begin)
            except asyncio.CancelledError:
                with suppress(Exception):  # the connection may be gone, with the transaction
                    await run_to_completion(self._in_thread(_abandon))
                raise
            async with self.own_engine.begin() as connection:
                lent = await connection.get_raw_connection()
                if listener_first:
                    await run_to_completion(
                        run_in_connection_thread(begin_watched, lent.driver_connection)
                    )
                self._open = object()
                _within.set(self._open)
                try:
                    yield connection
                finally:
                    self._open = None
                await run_to_completion(
                    run_in_connection_thread(end_watched, lent.driver_connection)
                )

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Wait no longer than SQLite itself would: a projection may wait for a write of its own."""
        lock = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_MS / 1000):
                await lock.acquire()
        except TimeoutError:
            raise SharedConnectionBusy("a transaction is open on the shared connection") from None
        try:
            yield
        finally:
            lock.release()


def _check_free(connection: sqlite3.Connection, _: object = None) -> None:
    if connection.in_transaction:
        raise SharedConnectionBusy("a transaction is open on the shared connection")


def _begin(connection: sqlite3.Connection, _: object) -> None:
    _check_free(connection)
    begin_watched(connection)


def _abandon(connection: sqlite3.Connection, _: object) -> None:
    """Roll back what `begin_watched` has begun, if anything, because no one else will."""
    with suppress(sqlite3.OperationalError):
        connection.execute(f"RELEASE {WATCH}")
        connection.execute("ROLLBACK")
