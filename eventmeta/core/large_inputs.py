"""Large inputs: they are encoded in a thread, or with pauses, so that the event loop goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from eventmeta.core.events import StreamKey

T = TypeVar("T")

LARGE = 10_000
"""How many values, or times 64 characters, take some milliseconds to be encoded."""

LARGE_TEXT = 64 * LARGE
"""How many characters of JSON take some milliseconds to be read."""

PAUSE_AFTER = 0.005
"""Seconds of work in the event loop after which others get their turn."""


def is_large(value: object) -> bool:
    """Return whether it takes long to encode ``value``; that is found out in little time."""
    left = LARGE
    waiting = [value]
    for item in waiting:  # which grows meanwhile
        if isinstance(item, str):
            left -= len(item) // 64
        elif isinstance(item, dict):
            entries = cast("dict[Any, Any]", item)
            left -= len(entries)
            if left > 0:
                waiting += _values(entries)
        elif isinstance(item, list):
            values = cast("list[Any]", item)
            left -= len(values)
            if left > 0:
                waiting += _elements(values)
        if left <= 0:
            return True
    return False


# What a subclass of the app's makes of them is not asked for.
_values = cast("Callable[[object], Iterable[object]]", vars(dict)["values"])
_elements = cast("Callable[[object], Iterable[object]]", vars(list)["__iter__"])


async def encoded(given: object, encode: Callable[[], T]) -> T:
    """Return ``encode()``, which runs in a thread if what was ``given`` is large."""
    return await asyncio.to_thread(encode) if is_large(given) else encode()


class Pauses:
    """Lets others have their turn, again and again, while something takes long."""

    def __init__(self) -> None:
        self._end = time.monotonic() + PAUSE_AFTER

    async def pause(self) -> None:
        """Let them, if it has taken long since the last pause."""
        if time.monotonic() > self._end:
            await asyncio.sleep(0)
            self._end = time.monotonic() + PAUSE_AFTER


class Order:
    """The order of writes to a stream, where a large one would be overtaken by those after it."""

    def __init__(self) -> None:
        self._last: dict[StreamKey, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def large_write(self, stream: StreamKey) -> AsyncGenerator[None]:
        """Wait for the large writes before this one, and have later writes wait for its end."""
        before = self._last.get(stream)
        mine = self._last[stream] = asyncio.get_running_loop().create_future()
        try:
            if before is not None:
                await asyncio.wait([before])
            yield
        finally:
            if self._last.get(stream) is mine:
                del self._last[stream]
            mine.set_result(None)

    def is_kept(self, stream: StreamKey) -> bool:
        """Return whether a write to ``stream`` is to wait."""
        return stream in self._last

    async def wait(self, stream: StreamKey) -> None:
        """Wait for the large writes to ``stream`` that came before."""
        before = self._last.get(stream)
        if before is not None:
            await asyncio.wait([before])
