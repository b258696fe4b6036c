"""A rebuild: a table is computed again from the whole log, while the old one goes on serving.

A shadow table is filled stream by stream, up to a horizon. It then catches up with the present, is
compared with the log, and takes the place of the old table. Each stage saves its progress, so that
an interrupted rebuild continues from there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NoReturn, TypeVar

from sqlalchemy import func, literal, select

from eventmeta.core.database_errors import DatabaseFailure, is_of_statement
from eventmeta.core.projection_errors import RebuildFailed, RebuildUnderWay
from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.statement import Program
from eventmeta.log.event_log import EventLog
from eventmeta.projector.catch_up import CatchUp
from eventmeta.projector.checkpoints import (
    BUILDING,
    Checkpoint,
    CheckpointStatements,
    Key,
    LeaseToken,
    key_values,
)
from eventmeta.projector.lease import Lease
from eventmeta.projector.progress import RebuildProgress, Rebuilt, Report
from eventmeta.projector.shadow_tables import ShadowTables, analyze
from eventmeta.projector.swap import AlreadySwapped, Swapping
from eventmeta.projector.target import ProjectionTarget
from eventmeta.projector.throttle import Pauses
from eventmeta.read_models.comparison import Comparison
from eventmeta.read_models.registry import RegisteredProjection

T = TypeVar("T")

BATCH = 10_000
DIFFERENCES_SHOWN = 3


@dataclass(frozen=True)
class Rebuild:
    """The rebuild of one projection.

    Attributes:
        log: The event log.
        registered: The projection.
        holder: The name of the worker that rebuilds.
        compare: Whether the new table is compared with the log before the swap.
        report: Called with the progress.
    """

    log: EventLog
    registered: RegisteredProjection
    holder: str
    compare: bool = True
    report: Report | None = None

    async def run(self) -> Rebuilt:
        """Rebuild the table, or continue an interrupted rebuild.

        Raises:
            RebuildUnderWay: Another process is rebuilding the projection.
            RebuildFailed: The new table differs from the log, or cannot replace the old table.
        """
        return await self._with_lease(self._build_and_swap)

    async def run_unless_current(self) -> None:
        """Rebuild the table, unless it already has this version once the lease is held."""

        async def work(claim: LeaseToken) -> None:
            if not await self._fold(partial(self._abandon_if_current, claim)):
                await self._build_and_swap(claim)

        await self._with_lease(work)

    def _abandon_if_current(self, claim: LeaseToken) -> Program[bool]:
        yield from self._checkpoints.fenced(claim)
        live = yield from self._checkpoints.find(Key(claim.key.projection))
        is_current = live is not None and live.version >= self.registered.projection.version
        if is_current:
            yield self._checkpoints.remove(**key_values(claim.key))
        return is_current

    async def _with_lease(self, work: Callable[[LeaseToken], Awaitable[T]]) -> T:
        key, version = self._target.key, self.registered.projection.version
        await self._fold(partial(self._checkpoints.begin, key, version))
        lease = Lease(self.log.database, self._checkpoints, key, self.holder)
        async with lease.held() as claim:
            if claim is None:
                raise RebuildUnderWay(
                    key.projection, "is being rebuilt by another process: wait for that rebuild"
                )
            async with lease.renewed(claim):
                return await work(claim)

    async def _build_and_swap(self, claim: LeaseToken) -> Rebuilt:
        start = time.monotonic()
        swapping = Swapping(self.log, self.registered, self._shadow, self._mover, claim)
        swapped: tuple[int, float] | None = None
        while swapped is None:
            # A cancellation waits from here on, so that the replaced tables are always dropped.
            if await self._is_swapped(claim):
                swapped = await run_to_completion(swapping.conclude())
            else:
                await self._build(claim)
                self._tell("swap", 0, 1)
                with suppress(AlreadySwapped):
                    swapped = await run_to_completion(swapping.run())
        position, swap_seconds = swapped
        self._tell("swap", 1, 1)
        projection, seconds = self.registered.projection, time.monotonic() - start
        return Rebuilt(projection.name, projection.version, position, seconds, swap_seconds)

    async def _build(self, claim: LeaseToken) -> None:
        await self._begin(claim)
        await self._fill(claim)
        await self._catch_up(claim)
        if self.compare and self._target.folded is not None:
            await self._compare(claim)
            await self._catch_up(claim)

    # --- Begin ----------------------------------------------------------------------------------

    async def _is_swapped(self, claim: LeaseToken) -> bool:
        """Return whether an earlier attempt swapped the tables but did not save the checkpoint.

        If the swapped tables may lack events, the rebuild starts again from the beginning.
        """
        checkpoint = await self._checkpoint(claim)
        shadows, retired = await self._fold(self._shadow.exist)
        is_filled = checkpoint.until is not None and checkpoint.stream_id is None
        if not (is_filled and retired and not shadows):
            return False
        if self.registered.inline:
            # When a process dies, writers are no longer blocked, but its last statement may still
            # be executed later: these tables lack what writers wrote in between.
            await self._fold(partial(self._checkpoints.discard, claim))
            return False
        return True

    async def _begin(self, claim: LeaseToken) -> None:
        """Create the shadow tables, unless an earlier attempt at this version has done so."""
        checkpoint = await self._checkpoint(claim)
        mine = self.registered.projection.version
        if checkpoint.until is not None and checkpoint.version == mine:
            return
        horizon = await self.log.horizon() if self._fills else 0

        def program() -> Program[None]:
            yield from self._checkpoints.discard(claim)
            yield from self._shadow.drop()
            yield from self._shadow.drop_retired()
            yield from self._shadow.create()
            if self._target.folded is not None:
                yield from analyze(self.log.database.dialect, self.log.database.tables.events)
            # Check the lease again: if DDL commits by itself, it has released the row's lock.
            found = yield from self._checkpoints.fenced(claim)
            yield self._mover.parking.free_all(**key_values(claim.key))
            fresh = found._replace(version=mine, position=0, stream_id="", until=horizon)
            yield from self._checkpoints.save(claim.key, fresh)

        await self._fold(program)

    # --- Fill -----------------------------------------------------------------------------------

    @property
    def _fills(self) -> bool:
        """Return whether whole streams can be folded one after the other."""
        return self._target.folded is not None and self._target.folded.by_stream

    async def _fill(self, claim: LeaseToken) -> None:
        heads = self.log.database.tables.streams
        ours = heads.c.stream_type == self.registered.projection.stream_type
        count = select(func.count()).select_from(heads).where(ours)
        ((streams,),) = await self.log.database.read(count)
        checkpoint = await self._checkpoint(claim)
        events_a_stream = max((checkpoint.until or 0) / max(streams, 1), 1)
        limit = max(int(self.log.database.dialect.events_per_fill / events_a_stream), 1)
        done, pauses = 0, Pauses(self.log)
        try:
            while await self._fold(partial(self._fill_next, claim, limit)):
                done = min(done + limit, streams)
                self._tell("fill", done, streams)
                await pauses.take()
            await self._fold(self._shadow.finish)
        except DatabaseFailure as failure:
            if not is_of_statement(failure):
                raise
            await self._fail(
                claim,
                f"if one row follows from several streams, it needs by_stream=False. {failure}",
            )

    def _fill_next(self, claim: LeaseToken, limit: int) -> Program[bool]:
        """Fold the next streams; return False if all streams are done."""
        found = yield from self._checkpoints.fenced(claim)
        if found.stream_id is None:
            return False
        last = None
        if found.until:
            ((last,),) = yield self._target.streams_end(after=found.stream_id, limit=limit)
        if last is None:
            position = found.until or 0
            filled = found._replace(stream_id=None, position=position)
        else:
            yield self._target.fill(first=found.stream_id, last=last, until=found.until)
            filled = found._replace(stream_id=last)
        yield from self._checkpoints.save(claim.key, self._checkpoints.renewed(filled))
        return last is not None

    # --- Catch up, and compare ------------------------------------------------------------------

    async def _catch_up(self, claim: LeaseToken) -> None:
        """Catch up until the remaining events fit into the swap."""
        pauses = Pauses(self.log)
        while True:
            horizon = await self.log.horizon()
            caught_up, events = False, 0
            while not caught_up:
                position, count, caught_up = await self._mover.step(claim, horizon)
                events += count
                self._tell("catch up", position, horizon)
                await pauses.take()
            if events < BATCH:
                return

    async def _compare(self, claim: LeaseToken) -> None:
        """Compare the shadow table with the fold of the log up to its checkpoint. No one waits."""
        checkpoint = await self._checkpoint(claim)
        self._tell("compare", 0, 1)
        log = self.log.database.tables.events
        events = self._target.relation(
            log.c.position <= literal(checkpoint.position), ~self._target.is_parked
        )
        name = self.registered.projection.name
        table = self._shadow.tables[0]
        comparison = Comparison.of_table(name, table, self._target.rows(events))
        rows = await self.log.database.scan(comparison.differences(), **key_values(claim.key))
        if rows:
            shown = comparison.named(rows)[:DIFFERENCES_SHOWN]
            await self._fail(
                claim,
                "its Select must give the same rows however the log is divided, but folding it in "
                f"batches and folding it as a whole give different rows, for example {shown}",
            )
        self._tell("compare", 1, 1)

    async def _fail(self, claim: LeaseToken, problem: str) -> NoReturn:
        """Raise `RebuildFailed`, and let the next rebuild start from the beginning."""
        await self._fold(partial(self._checkpoints.discard, claim))
        name = self.registered.projection.name
        raise RebuildFailed(name, f"cannot be rebuilt, so the old table goes on serving: {problem}")

    # --------------------------------------------------------------------------------------------

    async def _checkpoint(self, claim: LeaseToken) -> Checkpoint:
        return await self._fold(partial(self._checkpoints.fenced, claim))

    async def _fold(self, program: Callable[[], Program[T]]) -> T:
        return await self.log.database.fold(program, long=True)

    def _tell(self, stage: str, done: int, total: int) -> None:
        name = self.registered.projection.name
        if self.report is not None:
            self.report(RebuildProgress(name, stage, done, total))

    @property
    def _checkpoints(self) -> CheckpointStatements:
        return self._mover.checkpoints

    @cached_property
    def _shadow(self) -> ShadowTables:
        return ShadowTables.of(self.registered.projection.tables, self.log.database.dialect)

    @cached_property
    def _target(self) -> ProjectionTarget:
        log = self.log
        return ProjectionTarget(
            self.registered.projection,
            log.database.tables,
            log.database.dialect,
            self._shadow.tables,
            BUILDING,
        )

    @cached_property
    def _mover(self) -> CatchUp:
        limit = min(BATCH, self.log.database.dialect.events_per_fill)
        return CatchUp(self.log.database, self._target, limit)
