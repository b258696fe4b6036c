"""Statements on a connection of SQLAlchemy's, whose events the app may listen to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.statement import Query, Row

UNBUFFERED = {"stream_results": False, "yield_per": None, "no_parameters": False}
"""Defaults in place of options of the app's engine that are not for the store's statements."""


async def execute_query(connection: AsyncConnection, query: Query) -> Sequence[Row]:
    """Run ``query``, and return its rows."""
    sql, values = query.statement.sql, query.values
    if query.each:
        if values:
            rows_in = [tuple(row) for row in values]
            result = await connection.exec_driver_sql(sql, rows_in, UNBUFFERED)
            query.check_affected(result.rowcount)
        return ()
    result = await connection.exec_driver_sql(sql, tuple(values), UNBUFFERED)
    rows = result.fetchall() if result.returns_rows else ()
    query.check_affected(len(rows) if result.returns_rows else result.rowcount)
    return query.statement.decode(rows)


async def execute(connection: AsyncConnection, statements: Iterable[str]) -> None:
    """Run ``statements``, one after the other."""
    for statement in statements:
        await connection.exec_driver_sql(statement, None, UNBUFFERED)


@asynccontextmanager
async def transaction_by_hand(connection: AsyncConnection, begin: str) -> AsyncGenerator[None]:
    """Begin and end a transaction in SQL, if SQLAlchemy would commit each statement."""
    await execute(connection, (begin,))
    try:
        yield
    except BaseException:
        await execute(connection, ("ROLLBACK",))
        raise
    await execute(connection, ("COMMIT",))


@asynccontextmanager
async def afterwards(
    connection: AsyncConnection, statements: Iterable[str]
) -> AsyncGenerator[None]:
    """Run ``statements`` after the block, even if it fails.

    If the block has failed and the statements fail too, the connection is thrown away, which also
    ends what they would have ended. The error of the block is raised.
    """
    try:
        yield
    except BaseException:
        try:
            await execute(connection, statements)
        except SQLAlchemyError:
            await connection.invalidate()
        raise
    await execute(connection, statements)
