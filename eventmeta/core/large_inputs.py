"""Encoding of large inputs in a thread, or with pauses, so that the event loop is not blocked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

T = TypeVar("T")

LARGE = 10_000
"""The number of values, or of 64 characters of text, that take some milliseconds to encode."""

LARGE_TEXT = 64 * LARGE
"""The number of characters of JSON that take some milliseconds to parse."""

PAUSE_AFTER = 0.005
"""Seconds of work in the event loop after which other tasks get their turn."""


def is_large(value: object) -> bool:
    """Return whether ``value`` takes long to encode; this check itself is quick."""
    left = LARGE
    waiting = [value]
    for item in waiting:  # the list grows during the loop
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


# Methods of dict and list themselves: an app's subclass may override them.
_values = cast("Callable[[object], Iterable[object]]", vars(dict)["values"])
_elements = cast("Callable[[object], Iterable[object]]", vars(list)["__iter__"])


async def encoded(given: object, encode: Callable[[], T]) -> T:
    """Return ``encode()``, which runs in a thread if ``given`` is large."""
    return await asyncio.to_thread(encode) if is_large(given) else encode()


class Pauses:
    """Pauses in a long piece of work, so that other tasks get their turn."""

    def __init__(self) -> None:
        self._end = time.monotonic() + PAUSE_AFTER

    async def pause(self) -> None:
        """Let other tasks run if `PAUSE_AFTER` seconds have passed since the last pause."""
        if time.monotonic() > self._end:
            await asyncio.sleep(0)
            self._end = time.monotonic() + PAUSE_AFTER
