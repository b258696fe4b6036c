"""The projections of a store: registering them, keeping them up to date, rebuilding them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import literal, select

from eventmeta.core.projection_errors import LeaseLost, ProjectionBehind, RebuildUnderWay
from eventmeta.core.validation import check_count, check_positive, check_seconds, check_timeout
from eventmeta.projector.catch_up import BATCH, CatchUp, live_catch_up
from eventmeta.projector.checkpoints import new_holder, renewal_seconds
from eventmeta.projector.parked_streams import ParkedStream
from eventmeta.projector.progress import RebuildProgress, Rebuilt
from eventmeta.projector.rebuild import Rebuild
from eventmeta.projector.status import Status, status_of
from eventmeta.projector.worker import MAX_POLL, MIN_POLL, Follower, Projector, make_current
from eventmeta.read_models.registry import RegisteredProjection
from eventmeta.store.handle import StoreHandle
from projections import AnyProjection


class StoreProjections(StoreHandle):
    """A store with its projections."""

    def register(self, projection: AnyProjection, *, inline: bool = False) -> None:
        """Register ``projection`` with the stores of this engine, which keep it up to date.

        Call this in every process that writes (if ``inline``) or projects, before the process does
        so. After that `create_tables` also creates the projection's tables, and a projector,
        `catch_up` or `rebuild` fills them from the events that exist already.

        Args:
            projection: A `Projection` or an `AppliedProjection`, with tables of its own.
            inline: Update the projection in the transaction of every append. Then it is never
                behind, and an append fails if the update fails. If False, a `projector` follows
                the log and updates the projection.

        Raises:
            InvalidProjection: The projection cannot be kept, or another one has its name or table.
        """
        self._check_open()
        self._log.register(projection, inline=inline)

    def projector(self, *, batch_size: int = BATCH, max_poll: float = MAX_POLL) -> Projector:
        """Return a projector, which keeps the asynchronous projections up to date while it runs.

        Use it as ``async with store.projector():``.

        Args:
            batch_size: The maximum number of events applied in one transaction.
            max_poll: The longest pause between two checks of the log, in seconds. A write of this
                process ends the pause at once.

        Raises:
            InvalidInput: An argument is not a usable number.
        """
        self._check_open()
        check_positive("batch_size", batch_size)
        check_seconds("max_poll", max_poll)
        return Projector(self._log, batch_size=batch_size, max_poll=max_poll)

    async def catch_up(self, projection: str | None = None, *, timeout: float = 60.0) -> None:
        """Bring one of the app's projections, or all of them, up to date with the log.

        An inline projection is up to date once it is filled from the events that were there before
        it. If a projector is updating a projection, in this process or another, this call waits for
        that projector.

        Args:
            projection: The name of one projection; None for all projections of the app.
            timeout: The maximum number of seconds to wait for another worker.

        Raises:
            UnknownProjection: No projection has this name.
            ProjectionBehind: The other worker did not finish in time.
            StandbyServer: Projections can be kept only on the primary.
        """
        chosen = self._chosen(projection)
        check_timeout(timeout)
        await self._connected()
        horizon = await self._log.horizon()
        for registered in chosen:
            await self._catch_up(registered, horizon, timeout)

    async def _catch_up(
        self, registered: RegisteredProjection, horizon: int, timeout: float
    ) -> None:
        end = time.monotonic() + timeout
        while not await self._caught_up(registered):
            # Wait only for one renewal of the lease: the worker that holds it may have crashed.
            left = end - time.monotonic()
            try:
                await self._wait(registered, horizon, min(left, renewal_seconds()))
            except ProjectionBehind:
                if time.monotonic() >= end:
                    raise
            else:
                return

    async def _caught_up(self, registered: RegisteredProjection) -> bool:
        """Catch up once; return False if another worker holds the lease."""
        holder = new_holder()
        try:
            await make_current(self._log, registered, holder)
            if registered.inline:
                return True
            follower = Follower(self._log, registered, holder)
            async with follower.lease.held() as claim:
                if claim is not None:
                    await follower.catch_up(claim)
                return claim is not None
        except (LeaseLost, RebuildUnderWay):
            return False

    async def wait_for(self, position: int, projection: str, *, timeout: float = 30.0) -> None:
        """Wait until a projection has applied the log up to ``position``.

        After ``await store.wait_for(event.position, "mine")`` the projection shows the effect of
        the event.

        Args:
            position: The position of the event.
            projection: The name of the projection. An inline projection is never behind once it is
                filled from the events that were there before it.
            timeout: The maximum number of seconds to wait.

        Raises:
            ProjectionBehind: The projection did not reach the position in time, or the event's
                stream is parked.
            UnknownProjection: No projection has this name.
        """
        check_count("position", position)
        check_timeout(timeout)
        registered = self._log.registry[projection]
        await self._connected()
        if registered.built_in:
            return
        await self._wait(registered, position, timeout)
        if registered.inline:
            return
        for parked in await self._mover(registered).parked():
            if parked.position <= position and await self._is_of(position, parked):
                raise ProjectionBehind(
                    projection,
                    f"has parked stream {parked.stream_id!r} since position {parked.position}: "
                    f"{parked.error}. Fix the cause, then call retry({projection!r})",
                )

    async def _is_of(self, position: int, parked: ParkedStream) -> bool:
        log = self._log.database.tables.events.c
        stream = select(log.stream_id, log.stream_type).where(log.position == literal(position))
        return [tuple(row) for row in await self._log.database.read(stream)] == [parked[:2]]

    async def _wait(self, registered: RegisteredProjection, position: int, timeout: float) -> None:
        mover = self._mover(registered)
        end, pause, reached = time.monotonic() + timeout, MIN_POLL, 0
        while True:
            seen = self._log.applied.given
            found = await mover.checkpoint()
            if found is not None and found.version == registered.projection.version:
                reached = found.position
                if registered.inline or reached >= position:
                    return
            left = end - time.monotonic()
            if left <= 0:
                raise ProjectionBehind(
                    registered.projection.name,
                    f"is at position {reached}, not yet at {position}, after {timeout:g} s: is a "
                    "projector running? See status()",
                )
            await self._log.applied.wait(seen, min(pause, left))
            pause = min(2 * pause, MAX_POLL)

    async def rebuild(
        self,
        projection: str,
        *,
        compare: bool = True,
        progress: Callable[[RebuildProgress], Any] | None = None,
    ) -> Rebuilt:
        """Rebuild the table of a projection from the log, while the old table goes on serving.

        Readers see the old table or the new one. If the projection is inline, writers wait for the
        swap at the end. If the rebuild is interrupted, by a crash for example, the old table goes
        on serving, and the next call continues from there.

        Args:
            projection: The name of the projection; ``"metadata"``, ``"users"`` and ``"usage"`` are
                built in.
            compare: Compare the new table with the log before the swap. A projection in plain
                Python cannot be compared.
            progress: Called with a `RebuildProgress` now and then; `progress_bar` makes such a
                function.

        Returns:
            The version of the new table, the position it has reached, and the time it took.

        Raises:
            UnknownProjection: No projection has this name.
            RebuildUnderWay: Another process is rebuilding the projection.
            RebuildFailed: The new table differs from the log, or cannot replace the old table.
            StandbyServer: Projections can be kept only on the primary.
        """
        registered = self._log.registry[projection]
        await self._connected()
        await self._log.refuse_standby()
        rebuild = Rebuild(self._log, registered, new_holder(), compare, progress)
        return await rebuild.run()

    async def parked_streams(self, projection: str) -> list[ParkedStream]:
        """Return the streams at which a projection has failed, the first failure first.

        Raises:
            UnknownProjection: No projection has this name.
        """
        registered = self._log.registry[projection]
        await self._connected()
        return await self._mover(registered).parked()

    async def retry(self, projection: str) -> list[ParkedStream]:
        """Apply the waiting events of a projection's parked streams, and follow the streams again.

        Returns:
            The streams that failed again and stay parked.

        Raises:
            UnknownProjection: No projection has this name.
        """
        registered = self._log.registry[projection]
        await self._connected()
        mover = self._mover(registered)
        for parked in await mover.parked():
            await mover.retry(parked)
        return await mover.parked()

    async def status(self) -> Status:
        """Return how far the log is, and how far each projection and subscription has followed it.

        Projections and subscriptions of other processes are included.

        Raises:
            StandbyServer: Only the primary knows the horizon.
        """
        await self._connected()
        return await status_of(self._log)

    def _chosen(self, projection: str | None) -> list[RegisteredProjection]:
        registry = self._log.registry
        if projection is not None:
            return [registry[projection]]
        return [each for each in registry if not each.built_in]

    def _mover(self, registered: RegisteredProjection) -> CatchUp:
        return live_catch_up(self._log.database, registered.projection)
