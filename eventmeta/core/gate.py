"""What is under way in a database, for those who have to wait for its end."""

from __future__ import annotations

import asyncio

from eventmeta.core.errors import StoreClosed


class InFlight:
    """Lets work in until it is closed."""

    def __init__(self) -> None:
        self._is_closed = False
        self._inside: dict[asyncio.AbstractEventLoop, int] = {}
        self._waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def enter(self) -> asyncio.AbstractEventLoop:
        """Begin, and return what is to be passed to `leave` in the end.

        Raises:
            StoreClosed: It is closed.
        """
        if self._is_closed:
            raise StoreClosed
        loop = asyncio.get_running_loop()
        self._inside[loop] = self._inside.get(loop, 0) + 1
        return loop

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let those go on who wait for that."""
        self._inside[loop] -= 1
        if self._inside[loop]:
            return
        del self._inside[loop]
        for waiting in self._waiting.pop(loop, ()):
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Let nothing in any more."""
        self._is_closed = True

    async def settled(self) -> None:
        """Wait until nothing of this event loop is inside."""
        loop = asyncio.get_running_loop()
        if loop in self._inside:
            end = loop.create_future()
            self._waiting.setdefault(loop, []).append(end)
            await end
