"""PostgreSQL at work, through asyncpg: a batch of plain appends is one statement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.dialects.failure import Failure
from eventmeta.dialects.pool import configure, lend
from eventmeta.dialects.postgresql.statements import PostgreSQLStatements
from eventmeta.dialects.statement import Program, Query, Row, Statement, T, run
from eventmeta.settle import settle

if TYPE_CHECKING:
    from eventmeta.tables import Tables


class PostgreSQL(PostgreSQLStatements):
    """Positions come from a sequence, so they are visible out of order: see `horizon`."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, _prepare, loop_bound=True)

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        async def work(connection: Any) -> list[Sequence[Row]]:
            return [await _execute(connection, query) for query in queries]

        return await lend(self.engine, work, self.is_lost)

    async def scan(self, query: Query) -> Sequence[Row]:
        """By several processes of the server, where it lets a query have them.

        Its estimates, a hundred changes an event, speak against that, and for compiling the query.
        """

        async def work(connection: Any) -> Sequence[Row]:
            async with connection.transaction(readonly=True):
                await connection.execute("SET LOCAL parallel_tuple_cost = 0; SET LOCAL jit = off")
                return await _execute(connection, query)

        return await lend(self.engine, work, self.is_lost)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        async def work(connection: Any) -> T:
            execute = partial(_execute, connection)
            if single:
                return await run(program, execute)
            async with connection.transaction():
                return await run(program, execute)

        return await lend(self.engine, work, self.is_lost)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with connection.begin_nested():
                lent = await connection.get_raw_connection()
                return await run(program, partial(_execute, lent.driver_connection))

        return await settle(work())

    async def export(self, query: Query) -> bytes | None:
        """By COPY, which makes no objects of the rows."""
        parts: list[bytes] = []

        async def take(part: bytes) -> None:  # for a file, asyncpg would hop to a thread each time
            parts.append(part)

        async def copy(connection: Any) -> None:
            await connection.copy_from_query(
                query.statement.sql, *query.values, output=take, format="csv", quote="\x01"
            )

        await lend(self.engine, copy, self.is_lost)
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

        async with self.engine.connect() as connection:
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
    "23505": Failure.DUPLICATE,
    "23503": Failure.ORPHANED,
    "23": Failure.REFUSED,
    "P0001": Failure.REFUSED,  # raised by a trigger
    "42501": Failure.FORBIDDEN,
    "42P01": Failure.TABLE_MISSING,
    "57014": Failure.CANCELLED,
    "08": Failure.DISCONNECTED,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "57P04": Failure.DISCONNECTED,  # the database was dropped
    "57P05": Failure.DISCONNECTED,  # idle for too long
    "25P03": Failure.DISCONNECTED,  # so was its transaction
    "53300": Failure.DISCONNECTED,  # too many connections
    "53": Failure.RESOURCE,
    "58": Failure.RESOURCE,  # of the operating system
    "25006": Failure.RESOURCE,  # read-only
    "XX001": Failure.RESOURCE,  # damaged
    "XX002": Failure.RESOURCE,
    "28": Failure.RESOURCE,  # no connection is allowed
    "3D": Failure.RESOURCE,
}


def _prepare(dbapi_connection: Any) -> None:
    """Keep long statements prepared, too, if any are: asyncpg leaves out those over 15 kB."""
    connection = dbapi_connection.driver_connection
    connection._config = connection._config._replace(max_cacheable_statement_size=0)


async def _execute(connection: Any, query: Query) -> Sequence[Row]:
    rows = await connection.fetch(query.statement.sql, *query.values)
    return query.statement.decode(rows)
