"""Waking up tasks of this process that wait for new events."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Notifier:
    """A notice that is given after each commit.

    It is only a hint: those who wait for it look again after a while anyway.
    """

    def __init__(self) -> None:
        self.given = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def give(self) -> None:
        """Count a commit, and wake up all tasks that wait in this event loop."""
        self.given += 1
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        for waiter in [each for each in tuple(self._waiting) if each.get_loop() is loop]:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def has_waiters(self) -> bool:
        """Return whether any task waits."""
        return bool(self._waiting)

    async def wait(self, seen: int, seconds: float) -> None:
        """Wait for a notice after the first ``seen`` ones, but no longer than ``seconds``."""
        if self.given != seen:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter
        finally:
            self._waiting.discard(waiter)
