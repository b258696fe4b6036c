"""Running projections in plain Python, and telling what caused a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NoReturn, cast

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction

from eventmeta.core.database_errors import DatabaseFailure
from eventmeta.core.errors import StoreClosed
from eventmeta.core.events import RecordedEvent
from eventmeta.core.projection_errors import ProjectionFailed
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.failure import OF_THE_STATEMENT, Failure
from eventmeta.dialects.statement import Program, Statement
from eventmeta.read_models.apply_connection import REMEDY, lent
from projections import AppliedProjection


async def apply_events(
    projection: AppliedProjection,
    dialect: Dialect,
    connection: AsyncConnection,
    events: Sequence[RecordedEvent],
    tables: Sequence[Table],
    *,
    alone: bool = True,
) -> None:
    """Apply ``events`` to ``tables`` by ``projection``, in the transaction of ``connection``.

    The projection runs in a savepoint. The savepoint is gone if the transaction was ended or
    broken, so that is noticed: if this call succeeds, the same transaction goes on.

    Args:
        projection: The projection.
        dialect: The dialect of the database.
        connection: A connection whose transaction has begun. Roll it back if this call fails.
        events: The events that the projection asks for, in order. Without events nothing is done.
        tables: The tables to write to.
        alone: Nobody else writes to the tables meanwhile, so a duplicate key is not a race.

    Raises:
        ProjectionFailed: The projection failed because of its code or the events.
        DBAPIError: The database failed, and may succeed another time.
    """
    if not events:
        return

    def refuse(call: str) -> NoReturn:
        raise ProjectionFailed(projection.name, f"failed {_where(events)}: {call} {REMEDY}")

    savepoint, met = await connection.begin_nested(), list[BaseException]()
    try:
        with lent(connection, dialect, refuse, met) as given:
            await projection.apply(given, events, tables)
        await _release(connection, savepoint, dialect)
    except BaseException as error:
        broken = await _undo(connection, savepoint, dialect)
        if not _is_of_apply(error):
            raise
        # An error that ends the transaction may show only as a savepoint that is gone.
        hidden = met if broken or isinstance(error, TransactionLost) else []
        found = _of_the_database([*hidden, error, broken], dialect, alone)
        if found is None and broken is None:
            found = await _own_table_missing(error, dialect, connection, tables)
        if found is not None:
            raise found from found.__cause__
        if isinstance(error, ProjectionFailed):
            raise
        raise failure_of(projection, events, error) from getattr(error, "orig", error)


def _is_of_apply(error: BaseException) -> bool:
    """Return whether ``error`` is not a cancellation of this task, nor the end of the program.

    `apply` gets a `CancelledError` without being cancelled if it awaits a task that was.
    """
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(map(_is_of_apply, group.exceptions))
    task = asyncio.current_task()
    stray = isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
    return stray or isinstance(error, Exception)


class TransactionLost(Exception):
    """An error: `apply` ended or broke the transaction that it was given."""


async def _release(
    connection: AsyncConnection, savepoint: AsyncTransaction, dialect: Dialect
) -> None:
    """Release ``savepoint``, or fail if its transaction has ended.

    After an error that `apply` caught, a database may have undone the whole transaction. Some say
    so only at the release.

    Raises:
        TransactionLost: The transaction has ended, or `apply` left a savepoint open.
    """
    if savepoint.is_active and connection.get_nested_transaction() != savepoint:
        raise TransactionLost("it left a savepoint open: commit() it, or roll it back")
    try:
        await savepoint.commit()
    except Exception as error:
        raise TransactionLost(
            "it went on after an error with which the database undid the transaction, or one of "
            f"its statements {REMEDY}"
        ) from dialect.explain_lost_savepoint(error)


async def _undo(
    connection: AsyncConnection, savepoint: AsyncTransaction, dialect: Dialect
) -> Exception | None:
    """Roll back to ``savepoint``, and return the error if that fails."""
    try:
        while (inner := connection.get_nested_transaction()) is not None:
            await inner.rollback()
            if inner == savepoint:
                return None
        # SQLAlchemy takes the transaction for ended, so nothing else would roll it back.
        await connection.run_sync(lambda below: below.connection.rollback())
    except Exception as error:
        return dialect.explain_lost_savepoint(error)
    return None


def _of_the_database(
    errors: Iterable[BaseException | None], dialect: Dialect, alone: bool
) -> BaseException | None:
    """Return the first of ``errors`` and their causes that the database caused; None if none is."""
    for each in chain.from_iterable(map(_causes, errors)):
        if isinstance(each, DatabaseFailure | StoreClosed | PoolTimeout):
            return each
        failure, code = dialect.diagnose(each)
        if code is None and not isinstance(each, DBAPIError):
            continue  # not an error of this database's driver: `apply` may use the network
        if failure not in OF_THE_STATEMENT or (failure is Failure.DUPLICATE and not alone):
            return each
    return None


async def _own_table_missing(
    error: BaseException, dialect: Dialect, connection: AsyncConnection, tables: Sequence[Table]
) -> BaseException | None:
    """Return the error that says that a table is missing, if one of ``tables`` is missing."""
    names = {table.name.lower() for table in tables}

    def program() -> Program[set[str]]:
        rows = yield Statement(dialect.list_parts(sorted(names)), ())()
        return {relation.lower() for kind, relation, _ in rows if kind == "table"}

    for each in _causes(error):
        if dialect.diagnose(each)[0] is Failure.TABLE_MISSING:
            missing = names - await dialect.write_within(connection, program())
            return each if missing else None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error``, its causes, and the errors during whose handling it was raised."""
    found: dict[int, BaseException] = {}
    left = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            left += [each.__context__, each.__cause__]
    yield from found.values()


def _where(events: Sequence[RecordedEvent]) -> str:
    first, last = events[0].position, events[-1].position
    return f"at position {first}" if first == last else f"at positions {first} to {last}"


def failure_of(
    projection: AppliedProjection, events: Sequence[RecordedEvent], error: BaseException
) -> ProjectionFailed:
    """Return `ProjectionFailed` for ``error``, without the values that SQLAlchemy's would show."""
    cause = getattr(error, "orig", None) or error
    where = _where(events)
    if isinstance(error, TransactionLost):
        return ProjectionFailed(projection.name, f"failed {where}: {error}")
    says = f"{type(cause).__name__}: {cause}".removesuffix(": ")
    return ProjectionFailed(projection.name, f"failed {where}: {says}. Nothing was changed")
