"""One object for each event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """A container with one object for each event loop, made when it is first needed."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T]
        self._made = weakref.WeakKeyDictionary()
        self._latest: tuple[weakref.ref[asyncio.AbstractEventLoop], T] | None = None

    @property
    def here(self) -> T:
        """Return the object of the running event loop; make it if there is none."""
        loop = asyncio.get_running_loop()
        latest = self._latest  # a look-up in a weak dictionary costs more
        if latest is not None and latest[0]() is loop:
            return latest[1]
        found = self._made.get(loop)
        if found is None:
            self._forget_closed()
            found = self._made[loop] = self._make()
        self._latest = weakref.ref(loop), found
        return found

    def _forget_closed(self) -> None:
        """Drop the objects of closed loops.

        An object may refer to its loop, as a semaphore that was waited for does. Then it would keep
        its own key alive.
        """
        for reference in self._made.keyrefs():
            loop = reference()
            if loop is not None and loop.is_closed():
                self._made.pop(loop, None)

    @property
    def made_here(self) -> T | None:
        """Return the object of the running event loop, or None if it was not made yet."""
        return self._made.get(asyncio.get_running_loop())
