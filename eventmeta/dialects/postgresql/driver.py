"""The PostgreSQL dialect, through asyncpg: a batch of unconditional appends is one statement."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.database_errors import UnexpectedRowCount
from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.connections import (
    StepAside,
    Work,
    configure,
    driver_of,
    is_watched_on,
    with_driver_connection,
)
from eventmeta.dialects.executing import execute, transaction_by_hand
from eventmeta.dialects.failure import Failure, Rule
from eventmeta.dialects.postgresql.codecs import Facts, codec_proof, find_out
from eventmeta.dialects.postgresql.fast_path import INCOMPLETE
from eventmeta.dialects.postgresql.sql import PostgreSQLStatements
from eventmeta.dialects.statement import Program, Query, Row, Statement, T, run
from eventmeta.tables.tables import Tables


class PostgreSQL(PostgreSQLStatements):
    """The dialect of PostgreSQL.

    Positions come from a sequence, so they become visible out of order: see `horizon`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, find_out, loop_bound=True)

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        if self.is_watched:
            return await self._read_through(queries)

        async def work(connection: Any, facts: Facts) -> list[Sequence[Row]]:
            return [await _execute(connection, facts, query) for query in queries]

        try:
            return await self._lend(work)
        except StepAside:
            return await self._read_through(queries)

    async def scan(self, query: Query) -> Sequence[Row]:
        """Return the rows, read by several processes of the server if it allows that.

        The server's estimates, a hundred changes an event, would forbid that, and would make it
        compile the query.
        """
        async with self.transaction() as connection:
            await execute(connection, _IN_PARALLEL)
            return await self.execute_on(connection, query)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        if self.is_watched:
            return await self._through(program)

        async def work(connection: Any, facts: Facts) -> T:
            execute = partial(_execute, connection, facts)
            if single and facts.reads_committed:
                return await run(program, execute)
            async with connection.transaction(isolation="read_committed"):
                return await run(program, execute)

        try:
            return await self._lend(work)
        except StepAside:
            return await self._through(program)

    async def _lend(self, work: Work[T]) -> T:
        return await with_driver_connection(self.engine, work, self.is_lost, _has_begun)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with self.savepoint(connection):
                if is_watched_on(connection):
                    return await run(program, partial(self.execute_on, connection))
                return await run(program, partial(_execute, *await driver_of(connection)))

        return await run_to_completion(work())

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        """Begin a transaction at READ COMMITTED, unless a listener of the app's has begun one."""
        async with self.own_engine.connect() as connection:
            driver, _ = await driver_of(connection)
            if not _has_begun(driver):
                await connection.execution_options(isolation_level="READ COMMITTED")
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        raw = await connection.get_raw_connection()
        adapter: Any = raw.dbapi_connection
        if adapter.autocommit and not _has_begun(raw.driver_connection):
            part = transaction_by_hand(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
        else:
            part = super().savepoint(connection)
        async with part:
            yield

    async def execute_on(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        driver, facts = await driver_of(connection)
        if facts.has_codecs:
            query = await codec_proof(driver, facts, query)
        try:
            return await super().execute_on(connection, query)
        except DBAPIError as error:
            _check_complete(error, query)
            raise

    async def export(self, query: Query) -> bytes | None:
        """Return the rows by COPY, which makes no objects of the rows."""
        parts: list[bytes] = []

        async def take(part: bytes) -> None:  # for a file, asyncpg hops to a thread each time
            parts.append(part)

        if self.is_watched:
            return None

        async def copy(connection: Any, _: Facts) -> None:
            await connection.copy_from_query(
                query.statement.sql, *query.values, output=take, format="csv", quote="\x01"
            )

        try:
            await self._lend(copy)
        except StepAside:
            return None
        return b"".join(parts)

    # --- Hints ----------------------------------------------------------------------------------

    async def hint(self, tables: Tables) -> None:
        """Notify in its own transaction: within an append, all appends would commit in turn."""
        notify = Statement("SELECT pg_notify($1, '')", ("channel",))
        await self.read([notify(channel=tables.events.name)])

    @asynccontextmanager
    async def hints(self, tables: Tables, give: Callable[[], None]) -> AsyncGenerator[None]:
        """Listen on a connection of its own, closed at the end: the engine may be disposed."""

        def received(*_: object) -> None:
            give()

        async with self.own_engine.connect() as connection:
            lent = (await connection.get_raw_connection()).driver_connection
            assert lent is not None
            await lent.add_listener(tables.events.name, received)
            try:
                yield
            finally:
                await run_to_completion(connection.invalidate())

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        import asyncpg

        code = getattr(error, "sqlstate", None) or getattr(
            getattr(error, "orig", None), "sqlstate", None
        )
        if code is None:
            if isinstance(error, PoolTimeout):
                return Failure.NO_CONNECTION_LEFT, None
            if isinstance(error, TimeoutError) and error.errno is None:  # not that of a socket
                return Failure.TIMED_OUT, None
            # InternalClientError: the server closed the connection between two of our messages.
            lost = isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)
            lost = lost or getattr(error, "connection_invalidated", False)  # SQLAlchemy noticed it
            return (Failure.DISCONNECTED if lost else Failure.OTHER), None
        if code == _NOT_SUPPORTED and "cached" in str(error):
            return Failure.CONFLICT, code  # a plan from before a change of the tables
        return _FAILURES.get(code, _FAILURES.get(code[:2], Failure.OTHER)), code

    def rule_of(self, error: BaseException) -> Rule:
        cause = getattr(error, "orig", None) or error
        told: Any = getattr(cause, "__cause__", None) or cause  # SQLAlchemy's adapter has less
        missing_in = _MISSING_IN.search(getattr(told, "detail", None) or "")
        return Rule(
            getattr(told, "constraint_name", None),
            getattr(told, "table_name", None),
            missing_in[1] if missing_in else None,
        )


_NOT_SUPPORTED = "0A000"
_MISSING_IN = re.compile(r'"([^"]+)"\.?$')
_FAILURES = {
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.HELD,
    "23505": Failure.DUPLICATE,
    "23503": Failure.ORPHANED,
    "23": Failure.REFUSED,
    "44": Failure.REFUSED,  # the condition of a view
    "P0": Failure.REFUSED,  # raised by a trigger
    "42501": Failure.FORBIDDEN,  # a missing right, or a policy for rows
    "42P01": Failure.TABLE_MISSING,
    "42703": Failure.TABLE_MISSING,  # a column, which a newer version has added
    "57014": Failure.CANCELLED,
    "08": Failure.DISCONNECTED,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "57P04": Failure.DISCONNECTED,  # the database was dropped
    "57P05": Failure.DISCONNECTED,  # idle for too long
    "25P03": Failure.DISCONNECTED,  # its transaction was idle for too long
    "28": Failure.NOT_LET_IN,  # the user, or the password
    "3D": Failure.NOT_LET_IN,  # no such database
    "53300": Failure.NO_CONNECTION_LEFT,
    "53400": Failure.NO_CONNECTION_LEFT,  # a limit of the role, or of a pooler in between
    "53": Failure.RESOURCE,
    "58": Failure.RESOURCE,  # of the operating system
    "25006": Failure.RESOURCE,  # read-only
    "XX001": Failure.RESOURCE,  # damaged
    "XX002": Failure.RESOURCE,
}


_IN_PARALLEL = ("SET LOCAL parallel_tuple_cost = 0", "SET LOCAL jit = off")


def _has_begun(connection: Any) -> bool:
    return bool(connection.is_in_transaction())


async def _execute(connection: Any, facts: Facts, query: Query) -> Sequence[Row]:
    if facts.has_codecs:
        query = await codec_proof(connection, facts, query)
    if query.affects is not None and not query.statement.yields_rows:
        status = await connection.execute(query.statement.sql, *query.values)
        query.check_affected(int(status.rpartition(" ")[2]))
        return ()
    try:
        rows = await connection.fetch(query.statement.sql, *query.values)
    except Exception as error:
        _check_complete(error, query)
        raise
    query.check_affected(len(rows))
    return query.statement.decode(rows)


def _check_complete(error: Exception, query: Query) -> None:
    """Raise `UnexpectedRowCount` if the statement has undone itself for that reason."""
    if counts := INCOMPLETE.search(str(getattr(error, "orig", None) or error)):
        actual, expected = map(int, counts.groups())
        raise UnexpectedRowCount(query.statement.sql[:120], expected, actual) from None
