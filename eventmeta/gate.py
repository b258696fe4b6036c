"""What is under way in a database, for whoever has to wait for its end."""

from __future__ import annotations

import asyncio

from eventmeta.errors import StoreClosed

Passage = asyncio.Future[None]


class Gate:
    """Lets work in until it is closed."""

    def __init__(self) -> None:
        self._is_closed = False
        self._inside: set[Passage] = set()

    def enter(self) -> Passage:
        """Begin; whoever does calls `leave` in the end.

        Raises:
            StoreClosed: It is closed.
        """
        if self._is_closed:
            raise StoreClosed
        passage = asyncio.get_running_loop().create_future()
        self._inside.add(passage)
        return passage

    def leave(self, passage: Passage) -> None:
        """Let those go on who wait for that."""
        self._inside.discard(passage)
        if not passage.done():
            passage.set_result(None)

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closed = True

    async def settled(self) -> None:
        """Wait for all that is inside now, as far as it belongs to this event loop."""
        loop = asyncio.get_running_loop()
        inside = [passage for passage in self._inside if passage.get_loop() is loop]
        if inside:
            await asyncio.wait(inside)
