"""PostgreSQL at work, through asyncpg: a batch of plain appends is one statement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.dialects.executing import execute, transaction_by_hand
from eventmeta.dialects.failure import Failure
from eventmeta.dialects.pool import StepAside, Work, configure, driver_of, is_watched_on, lend
from eventmeta.dialects.postgresql.codecs import Facts, codec_proof, find_out
from eventmeta.dialects.postgresql.statements import PostgreSQLStatements
from eventmeta.dialects.statement import Program, Query, Row, Statement, T, run
from eventmeta.settle import settle

if TYPE_CHECKING:
    from eventmeta.tables import Tables


class PostgreSQL(PostgreSQLStatements):
    """Positions come from a sequence, so they are visible out of order: see `horizon`."""

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
        """By several processes of the server, where it lets a query have them.

        Its estimates, a hundred changes an event, speak against that, and for compiling the query.
        """
        async with self.transaction() as connection:
            await execute(connection, _IN_PARALLEL)
            return await self._execute_through(connection, query)

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
        return await lend(self.engine, work, self.is_lost, _has_begun)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with self.savepoint(connection):
                if is_watched_on(connection):
                    return await run(program, partial(self._execute_through, connection))
                return await run(program, partial(_execute, *await driver_of(connection)))

        return await settle(work())

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

    async def _execute_through(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        driver, facts = await driver_of(connection)
        if facts.has_codecs:
            query = await codec_proof(driver, facts, query)
        return await super()._execute_through(connection, query)

    async def export(self, query: Query) -> bytes | None:
        """By COPY, which makes no objects of the rows."""
        parts: list[bytes] = []

        async def take(part: bytes) -> None:  # for a file, asyncpg would hop to a thread each time
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
        """In a transaction of its own: within an append, all appends would commit one by one."""
        notify = Statement("SELECT pg_notify($1, '')", ("channel",))
        await self.read([notify(channel=tables.events.name)])

    @asynccontextmanager
    async def hints(self, tables: Tables, give: Callable[[], None]) -> AsyncGenerator[None]:
        """On a connection of its own, which ends with it: the engine may be disposed meanwhile."""

        def received(*_: object) -> None:
            give()

        async with self.own_engine.connect() as connection:
            lent = (await connection.get_raw_connection()).driver_connection
            assert lent is not None
            await lent.add_listener(tables.events.name, received)
            try:
                yield
            finally:
                await settle(connection.invalidate())

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        import asyncpg

        code = getattr(error, "sqlstate", None) or getattr(
            getattr(error, "orig", None), "sqlstate", None
        )
        if code is None:
            # InternalClientError: the server's farewell came between two of our messages.
            lost = isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)
            lost = lost or getattr(error, "connection_invalidated", False)  # SQLAlchemy found out
            return (Failure.DISCONNECTED if lost else Failure.OTHER), None
        return _FAILURES.get(code, _FAILURES.get(code[:2], Failure.OTHER)), code


_FAILURES = {
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.CONFLICT,
    "23503": Failure.CONFLICT,  # the session's row was deleted meanwhile
    "23505": Failure.DUPLICATE,
    "42P01": Failure.TABLE_MISSING,
    "57014": Failure.CANCELLED,
    "08": Failure.DISCONNECTED,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "53300": Failure.DISCONNECTED,  # too many connections
}


_IN_PARALLEL = ("SET LOCAL parallel_tuple_cost = 0", "SET LOCAL jit = off")


def _has_begun(connection: Any) -> bool:
    return bool(connection.is_in_transaction())


async def _execute(connection: Any, facts: Facts, query: Query) -> Sequence[Row]:
    if facts.has_codecs:
        query = await codec_proof(connection, facts, query)
    rows = await connection.fetch(query.statement.sql, *query.values)
    return query.statement.decode(rows)
