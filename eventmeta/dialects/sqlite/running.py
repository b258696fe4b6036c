"""SQLite at work, through aiosqlite: a transaction is one hop to the connection's thread."""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.dialects.base import LOCK_TIMEOUT_MS
from eventmeta.dialects.failure import Failure
from eventmeta.dialects.items import spell_out
from eventmeta.dialects.pool import configure, lend
from eventmeta.dialects.sqlite.items import SPELL_OUT
from eventmeta.dialects.sqlite.statements import SQLiteStatements
from eventmeta.dialects.statement import Program, Query, Row, T, run_in_thread
from eventmeta.settle import settle

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SETTINGS = (
    f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


WATCH = "eventmeta_watch"
"""The savepoint at the begin of a transaction, which is gone if someone else has ended it."""


class SharedConnectionBusy(sqlite3.OperationalError):
    """Someone else has a transaction open on the one connection of an in-memory database."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class SQLite(SQLiteStatements):
    """The embedded database: one writer at a time, so positions are in commit order."""

    locks_whole_database: ClassVar[bool] = True

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, _prepare, loop_bound=False)
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
        self._turns = weakref.WeakKeyDictionary()

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        def work(connection: sqlite3.Connection) -> list[Sequence[Row]]:
            return [_execute(connection, query) for query in queries]

        return await self._in_thread(work)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        def work(connection: sqlite3.Connection) -> T:
            _begin(connection)
            try:
                result = run_in_thread(program, partial(_execute, connection))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        async with self._turn():
            return await self._in_thread(work)

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Keep the other writers of this event loop waiting.

        Whoever waits for SQLite's own lock looks again after up to 0.1 s, and may come too late.
        """
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            yield

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        def work(raw: sqlite3.Connection) -> T:
            if not raw.in_transaction:
                raw.execute("BEGIN IMMEDIATE")
            raw.execute("SAVEPOINT eventmeta")
            try:
                result = run_in_thread(program, partial(_execute, raw))
            except BaseException:
                if raw.in_transaction:  # a full disk has undone all of it
                    raw.execute("ROLLBACK TO eventmeta")
                    raw.execute("RELEASE eventmeta")
                raise
            raw.execute("RELEASE eventmeta")
            return result

        if not connection.in_transaction():
            await connection.begin()  # SQLAlchemy must know that there is something to commit
        lent = await connection.get_raw_connection()
        try:
            return await settle(hop(work, lent.driver_connection))
        except BaseException:
            await _end_if_undone(connection)
            raise

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        savepoint = await connection.begin_nested()
        try:
            yield
        except BaseException:
            if not await _end_if_undone(connection) and savepoint.is_active:
                await savepoint.rollback()
            raise
        await savepoint.commit()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        async with self.engine.begin() as connection:
            lent = await connection.get_raw_connection()
            await settle(hop(begin_watched, lent.driver_connection))
            yield connection
            await settle(hop(end_watched, lent.driver_connection))

    async def first_connection(self, tables: Tables) -> None:
        """Not through the engine: it would reset a connection that the app shares with us."""
        await self._in_thread(lambda _: None)

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await lend(self.engine, partial(hop, work), self.is_lost)

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        error = getattr(error, "orig", None) or error
        if isinstance(error, MemoryError):  # the driver's error for SQLITE_NOMEM
            return Failure.RESOURCE, sqlite3.SQLITE_NOMEM
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failure.OTHER, None
        # SQLite has no code of its own for a missing table.
        if code == sqlite3.SQLITE_ERROR and str(error).startswith("no such table"):
            return Failure.TABLE_MISSING, code
        return _FAILURES.get(code, _FAILURES.get(code & 0xFF, Failure.OTHER)), code


_FAILURES = {
    sqlite3.SQLITE_BUSY: Failure.CONFLICT,
    sqlite3.SQLITE_LOCKED: Failure.CONFLICT,
    sqlite3.SQLITE_INTERRUPT: Failure.CANCELLED,
    sqlite3.SQLITE_CONSTRAINT: Failure.REFUSED,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Failure.ORPHANED,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Failure.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Failure.DUPLICATE,
    sqlite3.SQLITE_AUTH: Failure.FORBIDDEN,
    sqlite3.SQLITE_PERM: Failure.FORBIDDEN,
    sqlite3.SQLITE_FULL: Failure.RESOURCE,
    sqlite3.SQLITE_NOMEM: Failure.RESOURCE,
    sqlite3.SQLITE_READONLY: Failure.RESOURCE,
    sqlite3.SQLITE_IOERR: Failure.RESOURCE,
    sqlite3.SQLITE_CANTOPEN: Failure.RESOURCE,
    sqlite3.SQLITE_CORRUPT: Failure.RESOURCE,
    sqlite3.SQLITE_NOTADB: Failure.RESOURCE,
}


def _prepare(dbapi_connection: Any) -> None:
    cursor = dbapi_connection.cursor()
    for setting in _SETTINGS:
        cursor.execute(setting)
    with suppress(sqlite3.OperationalError):  # a database that may only be read stays as it is
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()
    dbapi_connection.create_function(SPELL_OUT, 1, spell_out, deterministic=True)


async def _end_if_undone(connection: AsyncConnection) -> bool:
    """Have SQLAlchemy know if SQLite has undone the transaction, as when the disk is full.

    To go on in it must fail, or the caller would commit only what comes later.
    """
    lent = await connection.get_raw_connection()
    whole = connection.get_transaction()
    assert lent.driver_connection is not None
    if whole is None or lent.driver_connection.in_transaction:
        return False
    await whole.rollback()
    return True


async def hop(work: Callable[[sqlite3.Connection], T], connection: Any) -> T:
    """Run ``work`` in the thread of an aiosqlite connection, on the connection of the stdlib.

    aiosqlite's public methods are one statement a hop; ``_execute`` is what they are made of. When
    a cancellation comes through, the thread has nothing left to do, or to tell an event loop that
    may be closed by then.
    """
    try:
        result: T = await connection._execute(work, connection._conn)
        return result
    except asyncio.CancelledError:
        with suppress(ValueError):  # closed meanwhile
            await settle(connection._execute(_idle))
        raise


def _idle() -> None:
    pass


def _begin(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        raise SharedConnectionBusy("a transaction is open on the shared connection")
    connection.execute("BEGIN IMMEDIATE")


def begin_watched(connection: sqlite3.Connection) -> None:
    """Begin a transaction in which it is noticed if someone else ends it."""
    _begin(connection)
    connection.execute(f"SAVEPOINT {WATCH}")


def end_watched(connection: sqlite3.Connection) -> None:
    """Make sure that all since `begin_watched` is still there to be committed."""
    try:
        connection.execute(f"RELEASE {WATCH}")
    except sqlite3.OperationalError as error:
        raise SharedConnectionBusy("someone else ended the transaction") from error


def _execute(connection: sqlite3.Connection, query: Query) -> Sequence[Row]:
    if query.each:
        connection.executemany(query.statement.sql, query.values)
        return ()
    return query.statement.decode(connection.execute(query.statement.sql, query.values).fetchall())
