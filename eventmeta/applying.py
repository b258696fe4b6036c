"""Projections in plain Python put to use: calling them, and telling whose failure it was."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.database_errors import DatabaseFailure
from eventmeta.dialects import Dialect, Failure
from eventmeta.events import RecordedEvent
from eventmeta.projection_errors import ProjectionFailed
from projections import AppliedProjection

_WATCH = "eventmeta_apply"
"""A savepoint that is gone when a transaction has ended, or failed and is only waiting for that."""

_OF_THE_DATABASE = frozenset(
    {Failure.CONFLICT, Failure.HELD, Failure.DISCONNECTED, Failure.TABLE_MISSING}
)


async def apply_events(
    projection: AppliedProjection,
    dialect: Dialect,
    connection: AsyncConnection,
    events: Sequence[RecordedEvent],
    tables: Sequence[Table],
    *,
    alone: bool = True,
) -> None:
    """Have ``projection`` bring ``tables`` up to date, inside the transaction of ``connection``.

    Args:
        projection: Which.
        dialect: Of the database.
        connection: With a transaction that has begun; it is to be rolled back if this fails.
        events: Those that the projection asks for, in order. Nothing is done if there are none.
        tables: What it is to write to.
        alone: Nobody else writes to the tables meanwhile, so a key that exists is no race.

    Raises:
        ProjectionFailed: It could not.
        DBAPIError: The database could not, and may be able to another time.
    """
    if not events:
        return
    passing = _OF_THE_DATABASE if alone else _OF_THE_DATABASE | {Failure.DUPLICATE}
    try:
        if dialect.is_shared:  # others may end the transaction, which is noticed at its end
            await projection.apply(connection, events, tables)
        else:
            await connection.exec_driver_sql(f"SAVEPOINT {_WATCH}")
            await projection.apply(connection, events, tables)
            await _still_open(connection)
    except DatabaseFailure:
        raise
    except Exception as error:
        if isinstance(error, DBAPIError) and dialect.diagnose(error)[0] in passing:
            raise
        raise failure_of(projection, events, error) from getattr(error, "orig", error)


class TransactionLost(Exception):
    """What `apply` left behind is not what it was given."""


async def _still_open(connection: AsyncConnection) -> None:
    """Make sure that what comes next is part of the same transaction, and can be committed.

    A database may have undone all of it after an error that `apply` caught, and say so only now.
    """
    try:
        await connection.exec_driver_sql(f"RELEASE SAVEPOINT {_WATCH}")
    except Exception as error:
        raise TransactionLost(
            "it went on after an error of the database that undid the transaction, or ended the "
            "transaction itself. To go on after an error, have the statement that may fail in "
            "`async with connection.begin_nested():`"
        ) from getattr(error, "orig", error)


def failure_of(
    projection: AppliedProjection, events: Sequence[RecordedEvent], error: Exception
) -> ProjectionFailed:
    """What to say of ``error``, without the values that SQLAlchemy's would show."""
    cause = getattr(error, "orig", None) or error
    first, last = events[0].position, events[-1].position
    where = f"position {first}" if first == last else f"positions {first} to {last}"
    if isinstance(error, TransactionLost):
        return ProjectionFailed(projection.name, f"failed at {where}: {error}")
    return ProjectionFailed(
        projection.name, f"failed at {where}: {type(cause).__name__}: {cause}. Nothing was changed"
    )
