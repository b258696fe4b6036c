"""PostgreSQL at work, through asyncpg: a batch of plain appends is one statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.dialects.base import Failure
from eventmeta.dialects.pool import checkout, configure
from eventmeta.dialects.postgresql.statements import PostgreSQLStatements
from eventmeta.dialects.statement import Program, Query, Row, T, run
from eventmeta.errors import UnsupportedEngine
from eventmeta.settle import settle


class PostgreSQL(PostgreSQLStatements):
    """Positions come from a sequence, so they are visible out of order: see `horizon`."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.driver != "asyncpg":
            raise UnsupportedEngine(
                f"the driver {engine.dialect.driver!r} is not supported on PostgreSQL: "
                "make the engine from a postgresql+asyncpg:// URL"
            )
        configure(engine, lambda _: None, loop_bound=True)

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        async with checkout(self.engine, self.is_lost) as connection:
            return [await _execute(connection, query) for query in queries]

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        async with checkout(self.engine, self.is_lost) as connection:
            execute = partial(_execute, connection)
            if single:
                return await run(program, execute)
            async with connection.transaction():
                return await run(program, execute)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with connection.begin_nested():
                lent = await connection.get_raw_connection()
                return await run(program, partial(_execute, lent.driver_connection))

        return await settle(work())

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        import asyncpg

        code = getattr(error, "sqlstate", None) or getattr(
            getattr(error, "orig", None), "sqlstate", None
        )
        if code is None:
            # InternalClientError: the server's farewell came between two of our messages.
            lost = isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)
            return (Failure.DISCONNECTED if lost else Failure.OTHER), None
        return _FAILURES.get(code, _FAILURES.get(code[:2], Failure.OTHER)), code


_FAILURES = {
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.CONFLICT,
    "23503": Failure.CONFLICT,  # the session's row was deleted meanwhile
    "23505": Failure.DUPLICATE,
    "42P01": Failure.TABLE_MISSING,
    "08": Failure.DISCONNECTED,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "53300": Failure.DISCONNECTED,  # too many connections
}


async def _execute(connection: Any, query: Query) -> Sequence[Row]:
    rows = await connection.fetch(query.statement.sql, *query.values)
    return query.statement.decode(rows)
