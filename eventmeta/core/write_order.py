"""The order of writes to a stream, while some of them are still being prepared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from eventmeta.core.deadline import Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import StreamKey


class Order:
    """The order of writes to a stream, while some of them have something to do before they submit.

    Each such write takes a turn, and so does each write that comes after it. A write that has
    nothing to do and finds no turn is submitted at once.
    """

    def __init__(self, expired: Callable[[Limits], EventMetaError]) -> None:
        """Begin without turns.

        Args:
            expired: Makes the error of a write that waited for its turn until its time was up.
        """
        self.expired = expired
        self.last: dict[StreamKey, asyncio.Future[None]] = {}

    def is_kept(self, stream: StreamKey) -> bool:
        """Return whether a write to ``stream`` has to take a turn."""
        return stream in self.last

    def turn(self, stream: StreamKey, limits: Limits) -> Turn:
        """Return the turn of a write to ``stream`` that waits as long as ``limits`` say."""
        return Turn(self, stream, limits)


class Turn:
    """A block in which a write is prepared, after the writes before it were submitted.

    Later writes wait until it is submitted too, which ends the turn, or until it has failed. A
    write inside a transaction of the caller's takes no turn: those before it may wait for that
    transaction.
    """

    def __init__(self, order: Order, stream: StreamKey, limits: Limits) -> None:
        self._order = order
        self._stream = stream
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + limits.timeout
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def __aenter__(self) -> Self:
        last = self._order.last
        before, last[self._stream] = last.get(self._stream), self._ended
        if before is None:
            return self
        try:
            await asyncio.wait([before], timeout=self._limits.timeout)
            if not before.done():
                raise self._order.expired(self._limits)
        except BaseException:  # those behind this write still have to wait for the one before it
            before.add_done_callback(lambda _: self.end())
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self.end()

    def end(self) -> Limits:
        """Let the next write take its turn; return the limits with the time that is left."""
        if not self._ended.done():
            self._ended.set_result(None)
            if self._order.last[self._stream] is self._ended:
                del self._order.last[self._stream]
        left = self._end - self._loop.time()
        return self._limits._replace(timeout=max(left, 0))
