"""Operations in progress, so that closing can wait for them."""

from __future__ import annotations

import asyncio

from eventmeta.core.errors import StoreClosed


class InFlight:
    """The operations in progress, counted for each event loop, until it is closed to new ones."""

    def __init__(self) -> None:
        self._is_closed = False
        self._inside: dict[asyncio.AbstractEventLoop, int] = {}
        self._waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def enter(self) -> asyncio.AbstractEventLoop:
        """Begin an operation; return the event loop, which `leave` takes at its end.

        Raises:
            StoreClosed: New operations are refused.
        """
        if self._is_closed:
            raise StoreClosed
        loop = asyncio.get_running_loop()
        self._inside[loop] = self._inside.get(loop, 0) + 1
        return loop

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """End an operation. If it was the last one of its event loop, wake up those who wait."""
        self._inside[loop] -= 1
        if self._inside[loop]:
            return
        del self._inside[loop]
        for waiting in self._waiting.pop(loop, ()):
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Refuse new operations."""
        self._is_closed = True

    async def settled(self) -> None:
        """Wait until this event loop has no operation in progress."""
        loop = asyncio.get_running_loop()
        if loop in self._inside:
            end = loop.create_future()
            self._waiting.setdefault(loop, []).append(end)
            await end
