"""Catch-up: applying the events between a checkpoint and the horizon exactly once.

Rows and checkpoint are written in one transaction, which locks the checkpoint's row and checks the
lease; the checkpoint is written last. If the events of a batch cannot be applied together, they are
applied one by one, and the stream of the event that fails is parked. A failure of the database
parks nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

from eventmeta.core.database_errors import DatabaseFailure, is_of_statement
from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import RecordedEvent, read_event
from eventmeta.core.projection_errors import ProjectionFailed, ProjectionOutdated, RebuildUnderWay
from eventmeta.database.database import Database
from eventmeta.dialects.failure import Failure
from eventmeta.dialects.statement import Program, Row
from eventmeta.projector.checkpoints import Checkpoint, CheckpointStatements, LeaseToken, key_values
from eventmeta.projector.parked_streams import ParkedStream, ParkingStatements, failed_at, stream_of
from eventmeta.projector.target import ProjectionTarget, live_target
from eventmeta.projector.transactions import Batch, Transactions, nothing
from projections import AnyProjection

logger = logging.getLogger("eventmeta")

BATCH = 1_000


class Step(NamedTuple):
    """The outcome of one transaction.

    Attributes:
        position: The position up to which the log is applied now.
        events: How many events were applied, or left out because their streams are parked.
        caught_up: Whether that position is the horizon.
    """

    position: int
    events: int
    caught_up: bool


@dataclass(frozen=True)
class CatchUp:
    """The catch-up of one projection.

    Attributes:
        database: The database.
        target: The projection and its tables.
        limit: The maximum number of events that one transaction applies.
    """

    database: Database
    target: ProjectionTarget
    limit: int = BATCH

    @cached_property
    def checkpoints(self) -> CheckpointStatements:
        """Return the statements for checkpoints."""
        return CheckpointStatements(self.database.tables, self.database.dialect)

    @cached_property
    def parking(self) -> ParkingStatements:
        """Return the statements for parked streams."""
        return ParkingStatements(self.database.tables, self.database.dialect)

    @cached_property
    def transactions(self) -> Transactions:
        """Return the transactions that apply events."""
        return Transactions(self.database, self.target)

    async def checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint, without waiting for the worker that updates the projection."""
        read = self.checkpoints.read(**key_values(self.target.key))
        rows = await self.database.fetch(read)
        return Checkpoint(*rows[0]) if rows else None

    # --- The next events ------------------------------------------------------------------------

    async def step(self, claim: LeaseToken, horizon: int) -> Step:
        """Apply the next events up to ``horizon``, but no more than ``limit``.

        Raises:
            LeaseLost: Another worker has taken over the projection.
            ProjectionOutdated: The table has another version than the projection.
            RebuildUnderWay: The table is being replaced at this moment.
            DatabaseFailure: The database cannot apply events now; nothing was applied.
        """
        try:
            return await self._advance(claim, horizon, self.limit)
        except EventMetaError as failure:
            if not self._is_of_the_event(failure):
                raise
        return await self._one_by_one(claim, horizon)

    async def _one_by_one(self, claim: LeaseToken, horizon: int) -> Step:
        done = 0
        while True:
            try:
                step = await self._advance(claim, horizon, 1)
            except EventMetaError as failure:
                if not self._is_of_the_event(failure):
                    raise
                parking = partial(self._park_next, claim, horizon, failure)
                step, parked = await self.database.fold(parking)
                self._warn(parked)
            done += step.events
            if step.caught_up or done >= self.limit:
                return step._replace(events=done)

    async def _advance(self, claim: LeaseToken, horizon: int, limit: int) -> Step:
        return await self.transactions.run(partial(self.advance, claim, horizon, limit))

    def advance(self, claim: LeaseToken, horizon: int, limit: int) -> Program[Batch[Step]]:
        """Read the events of one step, and fold them if the database can fold the projection."""
        before = yield from self.checkpoints.fenced(claim)
        self._check_version(before)
        if horizon <= before.position:
            return Batch(Step(before.position, 0, True), [], nothing)
        events: list[RecordedEvent] = []
        end, count = yield from self._end(before, horizon, limit)
        bounds = {"after": before.position, "until": end, **key_values(claim.key)}
        if count:
            if self.target.applied is None:
                for statement in self.target.fold_range:
                    yield statement(**bounds)
            else:
                rows = yield self.target.events_in_range(**bounds)
                events = [read_event(row) for row in rows]
        save = partial(self._save, claim, before, end)
        return Batch(Step(end, count, end == horizon), events, save)

    def _end(self, before: Checkpoint, horizon: int, limit: int) -> Program[tuple[int, int]]:
        """Return the position at which a batch ends, and the number of its events.

        A batch that has all events up to the horizon ends at the horizon.
        """
        ((end, count),) = yield self.target.batch_end(
            after=before.position, until=horizon, limit=limit
        )
        return (horizon if count < limit else end), count

    def _save(self, claim: LeaseToken, before: Checkpoint, position: int) -> Program[None]:
        after = self.checkpoints.renewed(before._replace(position=position))
        yield from self.checkpoints.save(claim.key, after)

    def _park_next(
        self, claim: LeaseToken, horizon: int, failure: EventMetaError
    ) -> Program[tuple[Step, list[ParkedStream]]]:
        before = yield from self.checkpoints.fenced(claim)
        end, count = yield from self._end(before, horizon, 1)
        rows = yield self.target.events_in_range(after=before.position, until=end)
        parked = [failed_at(read_event(row), failure) for row in rows]
        for stream in parked:
            yield from self.parking.park(claim.key, stream)
        yield from self._save(claim, before, end)
        return Step(end, count, end == horizon), parked

    def _warn(self, parked: Sequence[ParkedStream]) -> None:
        for stream in parked:
            logger.warning(
                "projection %r parked the %s %r at position %d: %s",
                self.target.projection.name,
                stream.stream_type,
                stream.stream_id,
                stream.position,
                stream.error.partition("\n")[0],  # some databases show the row in later lines
            )

    # --- Parked streams -------------------------------------------------------------------------

    async def parked(self) -> list[ParkedStream]:
        """Return the streams that wait for `retry`."""
        key = key_values(self.target.key)
        return [_parked(row) for row in await self.database.fetch(self.parking.all(**key))]

    async def retry(self, parked: ParkedStream) -> None:
        """Apply the waiting events of a parked stream in order, and follow the stream again.

        If an event cannot be applied, the stream is parked at that event.
        """
        limit = self.limit
        while True:
            try:
                done = await self.transactions.run(partial(self._resume, parked, limit))
            except EventMetaError as failure:
                if not self._is_of_the_event(failure):
                    raise
                if limit == 1:
                    self._warn(await self.database.fold(partial(self._park_again, parked, failure)))
                    return
                limit = 1
            else:
                if done:
                    return

    def _resume(self, parked: ParkedStream, limit: int) -> Program[Batch[bool]]:
        """Apply the next ``limit`` waiting events of a parked stream, or free the stream.

        The checkpoint stays locked, so that no worker moves it meanwhile.
        """
        key = self.target.key
        checkpoint = yield from self.checkpoints.find(key)
        found = yield self.parking.one(**key_values(key), **stream_of(parked))
        if checkpoint is None or not found:
            return Batch(True, [], nothing)
        self._check_version(checkpoint)
        of_stream = {"stream_id": parked.stream_id, "stream_type": parked.stream_type}
        first = _parked(found[0]).position - 1
        rows = yield self.target.events_of_stream(
            **of_stream, after=first, until=checkpoint.position
        )
        events = [read_event(row) for row in rows]
        waiting = events[limit:]
        end = events[limit - 1].position if waiting else checkpoint.position
        if self.target.applied is None:
            for statement in self.target.fold_stream:
                yield statement(**of_stream, after=first, until=end)
        named = {**key_values(key), **stream_of(parked)}

        def save() -> Program[None]:
            if waiting:
                yield self.parking.move(**named, new_position=int(waiting[0].position))
            else:
                yield self.parking.free(**named)

        return Batch(not waiting, events[:limit] if self.target.applied else [], save)

    def _park_again(
        self, parked: ParkedStream, failure: EventMetaError
    ) -> Program[list[ParkedStream]]:
        named = {**key_values(self.target.key), **stream_of(parked)}
        found = yield self.parking.one(**named)
        if not found:
            return []
        event = _parked(found[0])
        again = failed_at(event, failure, event.attempts + 1)
        yield from self.parking.park(self.target.key, again)
        return [again]

    # --------------------------------------------------------------------------------------------

    def _is_of_the_event(self, failure: EventMetaError) -> bool:
        """Return whether the event caused the failure, and not the database.

        A missing privilege concerns all events, because all need the projection's tables.
        """
        if not isinstance(failure, DatabaseFailure):
            return isinstance(failure, ProjectionFailed)
        cause = failure.__cause__ or failure
        found, _ = self.database.dialect.diagnose(cause)
        return is_of_statement(failure) and found is not Failure.FORBIDDEN

    def _check_version(self, checkpoint: Checkpoint) -> None:
        name, mine = self.target.projection.name, self.target.projection.version
        if checkpoint.version == 0:
            raise RebuildUnderWay(name, "is getting a new table at this moment: wait for that swap")
        if checkpoint.version != mine:
            raise ProjectionOutdated(
                name,
                f"has a table of version {checkpoint.version}, and this process has version "
                f"{mine}: rebuild() it here, or stop this process",
            )


def live_catch_up(database: Database, projection: AnyProjection, limit: int = BATCH) -> CatchUp:
    """Return the `CatchUp` of a projection's live tables."""
    return CatchUp(database, live_target(projection, database.tables, database.dialect), limit)


def _parked(row: Row) -> ParkedStream:
    return ParkedStream(*row)
