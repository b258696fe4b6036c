"""The SQLite dialect, through aiosqlite: a transaction is one hop to the connection's thread."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.connections import (
    StepAside,
    configure,
    driver_of,
    is_watched_on,
    with_driver_connection,
)
from eventmeta.dialects.failure import Failure, Rule
from eventmeta.dialects.sqlite.settings import (
    Facts,
    find_out,
    patience_ms,
    run_pragmas,
    set_up,
    waiting_no_longer,
)
from eventmeta.dialects.sqlite.sql import SQLiteStatements
from eventmeta.dialects.sqlite.thread import run_in_connection_thread
from eventmeta.dialects.statement import Program, Query, Row, T, run, run_in_thread

WATCH = "eventmeta_watch"
"""The savepoint at the start of a transaction; it is gone if other code has ended that."""


class SharedConnectionBusy(sqlite3.OperationalError):
    """Other code has a transaction open on the one connection of an in-memory database."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class SQLite(SQLiteStatements):
    """The dialect of SQLite: there is one writer at a time, so positions are in commit order."""

    locks_whole_database: ClassVar[bool] = True

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, find_out, loop_bound=False)
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
        self._turns = weakref.WeakKeyDictionary()

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        if self.is_watched:
            return await self._read_through(queries)
        try:
            return await self._read_at_once(queries)
        except StepAside:
            return await self._read_through(queries)

    async def _read_at_once(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        def work(connection: sqlite3.Connection, _: Facts) -> list[Sequence[Row]]:
            return [_execute(connection, query) for query in queries]

        return await self._in_thread(work)

    async def _read_through(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """Run ``queries`` in a deferred transaction; `transaction` would block writers."""
        async with self.own_engine.begin() as connection:
            return [await self.execute_on(connection, query) for query in queries]

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        if self.is_watched:
            return await self._through(program)

        def work(connection: sqlite3.Connection, facts: Facts) -> T:
            with set_up(connection, facts):
                with waiting_no_longer(connection, patience):
                    _begin(connection)
                try:
                    result = run_in_thread(program, partial(_execute, connection))
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            return result

        try:
            async with self._turn():
                patience = patience_ms()
                return await self._in_thread(work)
        except StepAside:
            return await self._through(program)

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Make the other writers of this event loop wait until the end of the block.

        A writer that waits for SQLite's own lock looks again only after up to 0.1 s, and may come
        too late.
        """
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            yield

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        def work(raw: sqlite3.Connection) -> T:
            _own(raw)
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

        async def through(driver: Any) -> T:
            await run_in_connection_thread(_own, driver)
            async with self.savepoint(connection):
                return await run(program, partial(self.execute_on, connection))

        if not connection.in_transaction():
            await connection.begin()  # so that SQLAlchemy knows there is something to commit
        driver, _ = await driver_of(connection)
        try:
            return await run_to_completion(
                through(driver)
                if is_watched_on(connection)
                else run_in_connection_thread(work, driver)
            )
        except BaseException:
            await _end_if_undone(connection)
            raise

    async def execute_on(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        if is_watched_on(connection):
            return await super().execute_on(connection, query)
        driver, _ = await driver_of(connection)
        return await run_in_connection_thread(lambda raw: _execute(raw, query), driver)

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
        async with self.own_engine.connect() as connection:
            driver, facts = await driver_of(connection)
            await run_to_completion(
                run_in_connection_thread(partial(run_pragmas, facts.set_up), driver)
            )
            try:
                async with connection.begin():
                    await run_to_completion(run_in_connection_thread(begin_watched, driver))
                    yield connection
                    await run_to_completion(run_in_connection_thread(end_watched, driver))
            finally:
                await run_to_completion(
                    run_in_connection_thread(partial(run_pragmas, facts.put_back), driver)
                )

    async def first_connection(self) -> None:
        """Connect without the engine, which would reset a connection shared with the app."""
        with suppress(StepAside):
            await self._in_thread(lambda connection, facts: None)

    async def _in_thread(self, work: Callable[[sqlite3.Connection, Facts], T]) -> T:
        def hopped(connection: Any, facts: Facts) -> Awaitable[T]:
            return run_in_connection_thread(work, connection, facts)

        return await with_driver_connection(self.engine, hopped, self.is_lost, _has_begun)

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        error = getattr(error, "orig", None) or error
        if isinstance(error, MemoryError):  # the driver's error for SQLITE_NOMEM
            return Failure.RESOURCE, sqlite3.SQLITE_NOMEM
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            busy = isinstance(error, PoolTimeout)
            return (Failure.NO_CONNECTION_LEFT if busy else Failure.OTHER), None
        # SQLite has no code for a missing table or column.
        if code == sqlite3.SQLITE_ERROR and _MISSING.search(str(error)):
            return Failure.TABLE_MISSING, code
        return _FAILURES.get(code, _FAILURES.get(code & 0xFF, Failure.OTHER)), code

    def rule_of(self, error: BaseException) -> Rule:
        """Return the rule that the text of ``error`` names; there is no other source."""
        _, _, told = str(getattr(error, "orig", None) or error).partition(" constraint failed: ")
        table, dot, _ = told.partition(".")
        return Rule(None, table) if dot else Rule(told or None)


_MISSING = re.compile("^no such (table|column)|has no column named")
_FAILURES = {
    sqlite3.SQLITE_BUSY: Failure.CONFLICT,
    sqlite3.SQLITE_LOCKED: Failure.CONFLICT,
    sqlite3.SQLITE_SCHEMA: Failure.CONFLICT,
    sqlite3.SQLITE_CANTOPEN: Failure.NOT_LET_IN,
    sqlite3.SQLITE_INTERRUPT: Failure.CANCELLED,
    sqlite3.SQLITE_CONSTRAINT: Failure.REFUSED,
    # Never a race: no other writer comes between the statements of a transaction.
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Failure.REFUSED,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Failure.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Failure.DUPLICATE,
    sqlite3.SQLITE_AUTH: Failure.FORBIDDEN,
    sqlite3.SQLITE_PERM: Failure.FORBIDDEN,
    sqlite3.SQLITE_FULL: Failure.RESOURCE,
    sqlite3.SQLITE_NOMEM: Failure.RESOURCE,
    sqlite3.SQLITE_READONLY: Failure.RESOURCE,
    sqlite3.SQLITE_IOERR: Failure.RESOURCE,
    sqlite3.SQLITE_CORRUPT: Failure.RESOURCE,
    sqlite3.SQLITE_NOTADB: Failure.RESOURCE,
}


async def _end_if_undone(connection: AsyncConnection) -> bool:
    """Tell SQLAlchemy if SQLite has undone the transaction, for example when the disk is full.

    Going on in the transaction must fail, or the caller would commit only what comes later.
    """
    lent = await connection.get_raw_connection()
    whole = connection.get_transaction()
    assert lent.driver_connection is not None
    if whole is None or lent.driver_connection.in_transaction:
        return False
    await whole.rollback()
    return True


def _has_begun(connection: Any) -> bool:
    return bool(connection._conn.in_transaction)


def _begin(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        raise SharedConnectionBusy("a transaction is open on the shared connection")
    connection.execute("BEGIN IMMEDIATE")


def _own(connection: sqlite3.Connection) -> None:
    """Begin a transaction that may write, or upgrade one that has begun and has read nothing."""
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")
        return
    try:
        connection.execute("UPDATE sqlite_sequence SET seq = seq WHERE 0")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # a missing table
            raise


def begin_watched(connection: sqlite3.Connection) -> None:
    """Begin a transaction, and notice if other code ends it.

    A listener of the app's may have begun it already.
    """
    _own(connection)
    connection.execute(f"SAVEPOINT {WATCH}")


def end_watched(connection: sqlite3.Connection) -> None:
    """Raise unless everything since `begin_watched` is still there to be committed."""
    try:
        connection.execute(f"RELEASE {WATCH}")
    except sqlite3.OperationalError as error:
        raise SharedConnectionBusy("someone else ended the transaction") from error


def _execute(connection: sqlite3.Connection, query: Query) -> Sequence[Row]:
    run = connection.executemany if query.each else connection.execute
    cursor = run(query.statement.sql, query.values)
    rows = cursor.fetchall()
    query.check_affected(cursor.rowcount)
    return query.statement.decode(rows)
