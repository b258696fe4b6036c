"""Projections in plain Python: calling them, and telling whose failure it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NoReturn

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
    """Have ``projection`` bring ``tables`` up to date, inside the transaction of ``connection``.

    It runs in a savepoint, which is gone if the transaction was ended or broken. So what is done
    after this is part of the same transaction as what was done before.

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

    def refuse(call: str) -> NoReturn:
        raise ProjectionFailed(projection.name, f"failed {_where(events)}: {call} {REMEDY}")

    savepoint, met = await connection.begin_nested(), list[BaseException]()
    try:
        with lent(connection, dialect, refuse, met) as given:
            await projection.apply(given, events, tables)
        await _release(connection, savepoint, dialect)
    except BaseException as error:
        broken = await _undo(connection, savepoint, dialect)
        if not isinstance(error, Exception):
            raise
        # What ends a transaction by itself may show only as a savepoint that is gone.
        hidden = met if broken or isinstance(error, TransactionLost) else []
        found = _of_the_database([*hidden, error, broken], dialect, alone)
        if found is None and broken is None:
            found = await _own_table_missing(error, dialect, connection, tables)
        if found is not None:
            raise found from found.__cause__
        if isinstance(error, ProjectionFailed):
            raise
        raise failure_of(projection, events, error) from getattr(error, "orig", error)


class TransactionLost(Exception):
    """What `apply` left behind is not what it was given."""


async def _release(
    connection: AsyncConnection, savepoint: AsyncTransaction, dialect: Dialect
) -> None:
    """End ``savepoint``, which fails unless what comes next is part of the same transaction.

    A database may have undone all of it after an error that `apply` caught, and say so only now.
    """
    if savepoint.is_active and connection.get_nested_transaction() != savepoint:
        raise TransactionLost("it left a savepoint open: commit() that, or roll it back")
    try:
        await savepoint.commit()
    except Exception as error:
        raise TransactionLost(
            "it went on after an error of the database that undid the transaction, or what it did "
            f"{REMEDY}"
        ) from dialect.explain_lost_savepoint(error)


async def _undo(
    connection: AsyncConnection, savepoint: AsyncTransaction, dialect: Dialect
) -> Exception | None:
    """Roll back to ``savepoint``. Return the error if that is not possible."""
    try:
        while (inner := connection.get_nested_transaction()) is not None:
            await inner.rollback()
            if inner == savepoint:
                return None
        # SQLAlchemy believes that the transaction has ended, so nothing else would undo it.
        await connection.run_sync(lambda below: below.connection.rollback())
    except Exception as error:
        return dialect.explain_lost_savepoint(error)
    return None


def _of_the_database(
    errors: Iterable[BaseException | None], dialect: Dialect, alone: bool
) -> BaseException | None:
    """Return what says, among ``errors`` and their causes, that the database is to blame."""
    for each in chain.from_iterable(map(_causes, errors)):
        if isinstance(each, DatabaseFailure | StoreClosed | PoolTimeout):
            return each
        failure, code = dialect.diagnose(each)
        if code is None and not isinstance(each, DBAPIError):
            continue  # not of this database's driver: `apply` may use the network
        if failure not in OF_THE_STATEMENT or (failure is Failure.DUPLICATE and not alone):
            return each
    return None


async def _own_table_missing(
    error: Exception, dialect: Dialect, connection: AsyncConnection, tables: Sequence[Table]
) -> BaseException | None:
    """Return what says that a table is missing, if one of ``tables`` is."""
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
    """Yield ``error``, and all that it was raised from or while handling."""
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
    projection: AppliedProjection, events: Sequence[RecordedEvent], error: Exception
) -> ProjectionFailed:
    """Return what to say of ``error``, without the values that SQLAlchemy's would show."""
    cause = getattr(error, "orig", None) or error
    where = _where(events)
    if isinstance(error, TransactionLost):
        return ProjectionFailed(projection.name, f"failed {where}: {error}")
    return ProjectionFailed(
        projection.name, f"failed {where}: {type(cause).__name__}: {cause}. Nothing was changed"
    )
