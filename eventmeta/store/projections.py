"""What a store can do with projections: keep them up to date, and build them anew."""

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
from eventmeta.store.log import StoreLog
from projections import AnyProjection


class StoreProjections(StoreLog):
    """A store with its projections."""

    def register(self, projection: AnyProjection, *, inline: bool = False) -> None:
        """Make ``projection`` known to this engine's stores, which keep it up to date from now on.

        To be said in every process that writes (if ``inline``) or projects, before it does. Then
        `create_tables` makes its tables as well, and a projector, `catch_up` or `rebuild` fills
        them from the events that are there already.

        Args:
            projection: A `Projection` or an `AppliedProjection`, with tables of its own.
            inline: Update it in the transaction of every append, so that it is never behind, and
                an append fails if it does. Else a `projector` follows the log with it.

        Raises:
            InvalidProjection: It cannot be kept, or another has its name or its table.
        """
        self._check_open()
        self._log.register(projection, inline=inline)

    def projector(self, *, batch_size: int = BATCH, max_poll: float = MAX_POLL) -> Projector:
        """What keeps the asynchronous projections up to date: ``async with store.projector():``.

        Args:
            batch_size: How many events are applied in one transaction, at the most.
            max_poll: The longest pause between two looks at the log, in seconds. Writes of this
                process end it at once.

        Raises:
            InvalidInput: One of them is not a number that can be used.
        """
        self._check_open()
        check_positive("batch_size", batch_size)
        check_seconds("max_poll", max_poll)
        return Projector(self._log, batch_size=batch_size, max_poll=max_poll)

    async def catch_up(self, projection: str | None = None, *, timeout: float = 60.0) -> None:
        """Bring the app's projections, or one, up to what the log holds by now.

        Inline ones are up to date once they have been filled from the events that were there before
        them. Where a projector is at it, in this process or another, this waits for that.

        Args:
            projection: The name of one; all of the app's own if None.
            timeout: How many seconds to wait for someone else, at the most.

        Raises:
            UnknownProjection: There is none of this name.
            ProjectionBehind: Whoever is at it did not come to the end in time.
            StandbyServer: Projections are to be kept on the primary.
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
            # Not to the end, for whoever is at it may have crashed.
            left = end - time.monotonic()
            try:
                await self._wait(registered, horizon, min(left, renewal_seconds()))
            except ProjectionBehind:
                if time.monotonic() >= end:
                    raise
            else:
                return

    async def _caught_up(self, registered: RegisteredProjection) -> bool:
        """Do what there is to do; False if someone else is at it."""
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

        So what an event did can be read there: ``await store.wait_for(event.position, "mine")``.

        Args:
            position: That of the event.
            projection: The projection's name. One that is inline is never behind, once it has been
                filled from the events that were there before it.
            timeout: How many seconds, at the most.

        Raises:
            ProjectionBehind: It did not come so far in time, or the event's stream is parked.
            UnknownProjection: There is none of this name.
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
                    f"{parked.error}. Mend it, and call retry({projection!r})",
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
        """Make the table of a projection anew from the log, while the old one goes on serving.

        Readers see the old table or the new one. Writers wait for the swap at the end, if the
        projection is inline. Broken off anywhere, by a crash for example, the old table goes on
        serving, and the next call goes on from there.

        Args:
            projection: Its name; ``"metadata"``, ``"users"`` and ``"usage"`` are built in.
            compare: Compare the new table with the log before the swap. (Not where the projection
                is plain Python.)
            progress: Called with a `RebuildProgress` now and then; `progress_bar` makes one.

        Returns:
            What was built, and how long it took.

        Raises:
            UnknownProjection: There is none of this name.
            RebuildUnderWay: Another process does it.
            RebuildFailed: The new table is not what the log says.
            StandbyServer: Projections are to be kept on the primary.
        """
        registered = self._log.registry[projection]
        await self._connected()
        await self._log.refuse_standby()
        rebuild = Rebuild(self._log, registered, new_holder(), compare, progress)
        return await rebuild.run()

    async def parked_streams(self, projection: str) -> list[ParkedStream]:
        """The streams at which a projection has failed, the first failure first.

        Raises:
            UnknownProjection: There is none of this name.
        """
        registered = self._log.registry[projection]
        await self._connected()
        return await self._mover(registered).parked()

    async def retry(self, projection: str) -> list[ParkedStream]:
        """Apply what has gathered of a projection's parked streams, and follow them again.

        Returns:
            Those that failed again, and stay parked.

        Raises:
            UnknownProjection: There is none of this name.
        """
        registered = self._log.registry[projection]
        await self._connected()
        mover = self._mover(registered)
        for parked in await mover.parked():
            await mover.retry(parked)
        return await mover.parked()

    async def status(self) -> Status:
        """How far the log is, and each projection and subscription behind it.

        Those are included which only other processes have registered or follow.

        Raises:
            StandbyServer: Only the primary can tell.
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
