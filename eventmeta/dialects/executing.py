"""Statements that yield nothing, run on a connection of SQLAlchemy's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection


async def execute(connection: AsyncConnection, statements: Iterable[str]) -> None:
    """Run ``statements``, one after the other."""
    for statement in statements:
        await connection.exec_driver_sql(statement)


@asynccontextmanager
async def afterwards(
    connection: AsyncConnection, statements: Iterable[str]
) -> AsyncGenerator[None]:
    """Run ``statements`` after the block, whatever comes of it.

    If it has failed and the connection does not take them either, that is thrown away, which ends
    what they would have ended, and the failure of the block is what is told.
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
