"""The transactions of the projector: read events, apply them, then save the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.events import RecordedEvent
from eventmeta.database.database import Database
from eventmeta.dialects.statement import Program
from eventmeta.projector.target import ProjectionTarget
from eventmeta.read_models.apply import apply_events

T = TypeVar("T")


class Batch(NamedTuple, Generic[T]):
    """The events that a transaction has read.

    Attributes:
        result: The outcome of the transaction.
        events: The events that Python has to apply.
        save: Writes the position up to which the log is applied then.
    """

    result: T
    events: list[RecordedEvent]
    save: Callable[[], Program[None]]


@dataclass(frozen=True)
class Transactions:
    """The transactions in which a projection is updated.

    Attributes:
        database: The database.
        target: The projection and its tables.
    """

    database: Database
    target: ProjectionTarget

    async def run(self, program: Callable[[], Program[Batch[T]]]) -> T:
        """Run ``program`` as a transaction of its own, and return its result."""
        if self.target.applied is None:
            return await self.database.fold(lambda: _saved(program()))

        async def work() -> T:
            async with self.database.dialect.transaction() as connection:
                return await self.carry_out(program(), connection)

        return await self.database.repeated(work)

    async def carry_out(self, program: Program[Batch[T]], connection: AsyncConnection) -> T:
        """Run ``program`` in the transaction of ``connection``, and return its result.

        The checkpoint is saved last, so that an `apply` that has ended the transaction is detected
        before.
        """
        dialect, applied = self.database.dialect, self.target.applied
        batch = await dialect.write_within(connection, program)
        if applied is not None:
            await apply_events(applied, dialect, connection, batch.events, self.target.tables)
        await dialect.write_within(connection, batch.save())
        return batch.result


def nothing() -> Program[None]:
    """Do nothing."""
    yield from ()


def _saved(program: Program[Batch[T]]) -> Program[T]:
    batch = yield from program
    yield from batch.save()
    return batch.result
