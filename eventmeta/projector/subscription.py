"""Subscriptions: following the log live, with one reader of a name at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import cached_property, partial

from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import RecordedEvent
from eventmeta.dialects.statement import Program
from eventmeta.log.event_log import EventLog
from eventmeta.projector.checkpoints import (
    SUBSCRIPTION,
    CheckpointStatements,
    Key,
    LeaseToken,
    new_holder,
    renewal_seconds,
)
from eventmeta.projector.worker import MAX_POLL, MIN_POLL

SAVE_SECONDS = 1.0
"""After this many seconds at most, the position of a busy reader is saved."""


@dataclass(frozen=True)
class Subscription:
    """A named reader of the log.

    Attributes:
        log: The event log.
        name: The name under which the position is kept.
        after: The position after which a new subscription begins.
        types: Only events of these types.
        max_poll: The longest pause between two checks of the log, in seconds.
    """

    log: EventLog
    name: str
    after: int
    types: Collection[str] | None
    max_poll: float = MAX_POLL

    async def follow(self) -> AsyncGenerator[RecordedEvent]:
        """Yield the events as they come, without end.

        Raises:
            LeaseLost: Another reader of the name took over, because this one was away for too long.
        """
        async with self.log.hints(), aclosing(self._follow()) as events:
            async for event in events:
                yield event

    async def _follow(self) -> AsyncGenerator[RecordedEvent]:
        holder, position = new_holder(), None
        try:
            claim = await self._take_lease(holder)
            saved = position = await self._position(claim)
            saved_at, pause = time.monotonic(), MIN_POLL
            while True:
                self.log.database.check_open()
                seen = self.log.appended.given
                horizon = await self.log.horizon()
                before = position
                async for event in self.log.read_all(position, until=horizon, types=self.types):
                    yield event
                    position = event.position
                    if time.monotonic() - saved_at > SAVE_SECONDS:
                        await self._save(claim, position)
                        saved, saved_at = position, time.monotonic()
                position = max(position, horizon)
                if position > saved or time.monotonic() - saved_at > renewal_seconds():
                    await self._save(claim, position)
                    saved, saved_at = position, time.monotonic()
                pause = MIN_POLL if position > before else 2 * pause
                pause = min(pause, self.max_poll, renewal_seconds())
                await self.log.appended.wait(seen, pause)
        finally:
            with suppress(EventMetaError):  # then the lease expires, and the saved position stays
                leave = partial(self._checkpoints.give_back, self._key, holder, position)
                await self.log.database.fold(leave)

    async def _take_lease(self, holder: str) -> LeaseToken:
        """Take the lease; wait until no other reader holds it."""
        pause = MIN_POLL

        def program() -> Program[LeaseToken | None]:
            yield from self._checkpoints.begin(self._key, 1, self.after)
            return (yield from self._checkpoints.take_lease(self._key, holder))

        while (claim := await self.log.database.fold(program)) is None:
            await self.log.appended.wait(self.log.appended.given, pause)
            pause = min(2 * pause, self.max_poll)
        return claim

    async def _save(self, claim: LeaseToken, position: int) -> None:
        def program() -> Program[None]:
            found = yield from self._checkpoints.fenced(claim)
            moved = self._checkpoints.renewed(found._replace(position=position))
            yield from self._checkpoints.save(claim.key, moved)

        await self.log.database.fold(program)

    async def _position(self, claim: LeaseToken) -> int:
        found = await self.log.database.fold(partial(self._checkpoints.fenced, claim))
        return found.position

    @property
    def _key(self) -> Key:
        return Key(self.name, SUBSCRIPTION)

    @cached_property
    def _checkpoints(self) -> CheckpointStatements:
        return CheckpointStatements(self.log.database.tables, self.log.database.dialect)
