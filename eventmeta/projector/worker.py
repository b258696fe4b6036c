"""`Projector`: a worker that keeps the asynchronous projections up to date."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import TracebackType
from typing import Self

from eventmeta.core.database_errors import StandbyServer
from eventmeta.core.errors import EventMetaError, StoreClosed
from eventmeta.core.projection_errors import LeaseLost, RebuildUnderWay
from eventmeta.core.settle import run_to_completion
from eventmeta.log.event_log import EventLog
from eventmeta.projector.catch_up import BATCH, live_catch_up
from eventmeta.projector.checkpoints import Checkpoint, LeaseToken, new_holder, renewal_seconds
from eventmeta.projector.lease import Lease
from eventmeta.projector.rebuild import Rebuild
from eventmeta.read_models.registry import RegisteredProjection

logger = logging.getLogger("eventmeta")

MIN_POLL, MAX_POLL = 0.01, 1.0
"""Seconds between two checks of the log. The pause doubles after each check that finds nothing."""


class Projector:
    """A worker that follows the log with the asynchronous projections, until it is stopped.

    Only the holder of a projection's lease updates the projection. Several projectors, in any
    processes, share the projections; if one crashes, the others take over its projections. Each
    event is applied exactly once, and the events of a stream are applied in order. A projection
    whose version has changed is rebuilt first.

    Use it as ``async with store.projector():``, or await `run`.
    """

    def __init__(
        self, log: EventLog, *, batch_size: int = BATCH, max_poll: float = MAX_POLL
    ) -> None:
        self._log = log
        self._batch_size = batch_size
        self._max_poll = max_poll
        self._holder = new_holder()
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow the log until this call is cancelled, or the store that owns the engine is closed.

        A failure that concerns all events is logged and retried: for example, if the database
        cannot be reached or is full.

        Raises:
            StandbyServer: A projector can run only on the primary.
        """
        await self._refuse_standby()
        await self._run()

    async def _refuse_standby(self) -> None:
        """Raise `StandbyServer` on a standby; ignore other failures, which are retried later."""
        try:
            await self._log.database.opening.connect(create=False)
            await self._log.refuse_standby()
        except StandbyServer:
            raise
        except EventMetaError as failure:
            logger.debug("the projector waits: %s", failure)

    async def _run(self) -> None:
        async with self._log.hints(), asyncio.TaskGroup() as group:
            for registered in self._log.registry:
                group.create_task(self._keep(registered))

    async def __aenter__(self) -> Self:
        await self._refuse_standby()
        self._task = asyncio.create_task(self._run(), name="eventmeta-projector")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        task, self._task = self._task, None
        task.cancel()
        await run_to_completion(asyncio.wait([task]))
        if not task.cancelled():
            task.result()

    # --- One projection -------------------------------------------------------------------------

    async def _keep(self, registered: RegisteredProjection) -> None:
        pause, told = MIN_POLL, ""
        while True:
            try:
                await self._log.database.opening.connect(create=False)
                await make_current(self._log, registered, self._holder)
                if registered.inline:
                    return
                if await self._follow(registered):
                    pause, told = MIN_POLL, ""
            except StoreClosed:
                return
            except (LeaseLost, RebuildUnderWay) as busy:
                logger.debug("%s", busy)
            except EventMetaError as failure:
                level = logging.DEBUG if str(failure) == told else logging.WARNING
                told = str(failure)
                logger.log(level, "projection %r waits: %s", registered.projection.name, failure)
            except Exception:  # one projection must not end all the others
                logger.exception("projection %r waits", registered.projection.name)
            _let_cancellation_through()
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._max_poll)

    async def _follow(self, registered: RegisteredProjection) -> bool:
        """Update a projection while the lease lasts; return False if another worker holds it."""
        follower = Follower(self._log, registered, self._holder, self._batch_size)
        async with follower.lease.held() as claim:
            if claim is not None:
                await self._follow_with(follower, claim)
            return claim is not None

    async def _follow_with(self, follower: Follower, claim: LeaseToken) -> None:
        pause = MIN_POLL
        while True:
            seen = self._log.appended.given
            if await follower.catch_up(claim):
                pause = MIN_POLL
            if await follower.lease.take() != claim:
                return
            await self._log.appended.wait(seen, pause)
            pause = min(2 * pause, self._max_poll, renewal_seconds())


def _let_cancellation_through() -> None:
    """Raise `CancelledError` if the task was cancelled but another exception has replaced it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Follower:
    """An asynchronous projection with the lease under which one worker updates it."""

    def __init__(
        self, log: EventLog, registered: RegisteredProjection, holder: str, batch_size: int = BATCH
    ) -> None:
        self._log = log
        self.mover = live_catch_up(log.database, registered.projection, batch_size)
        key = self.mover.target.key
        self.lease = Lease(log.database, self.mover.checkpoints, key, holder)

    async def catch_up(self, claim: LeaseToken) -> int:
        """Apply all events up to the horizon, and return their number."""
        horizon = await self._log.horizon()
        events, caught_up = 0, False
        while not caught_up:
            _, count, caught_up = await self.mover.step(claim, horizon)
            events += count
            self._log.applied.give()
        return events


async def checkpoint_of(log: EventLog, registered: RegisteredProjection) -> Checkpoint | None:
    """Return the checkpoint of a projection, without waiting for the worker that updates it."""
    return await live_catch_up(log.database, registered.projection).checkpoint()


async def make_current(log: EventLog, registered: RegisteredProjection, holder: str) -> None:
    """Rebuild a projection if its table has no version yet, or an older one.

    A built-in projection is filled from the creation of its table on. So without a version it only
    gets a checkpoint.

    Raises:
        RebuildUnderWay: Another process is rebuilding the projection.
        RebuildFailed: The new table differs from the log, or cannot replace the old table.
    """
    found = await checkpoint_of(log, registered)
    version = registered.projection.version
    if found is not None and found.version >= version:
        return
    if found is None and registered.built_in:
        mover = live_catch_up(log.database, registered.projection)
        await log.database.fold(partial(mover.checkpoints.begin, mover.target.key, version))
    else:
        await Rebuild(log, registered, holder).run_unless_current()
