"""Time limits for the calls that wait in an event loop, with one timer for all of them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextvars import Context
from math import inf
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A call that waits.

    Attributes:
        end: The time of the event loop at which its limit is reached.
    """

    end: float


W = TypeVar("W", bound=Waiting)


class Timeouts(Generic[W]):
    """The calls that wait in one event loop, and the function that ends those whose time is up.

    One timer is set for the call that expires first. It stays when that call ends in time, and when
    it fires it is set for the next call. So each call costs an entry in a dict; a timer for each
    would be most of the cost of a quick call.
    """

    def __init__(self, give_up: Callable[[W], None]) -> None:
        """Begin without calls.

        Args:
            give_up: Called once with each call whose time is up.
        """
        self._give_up = give_up
        self._calls: dict[W, None] = {}
        self._next_look = inf

    def add(self, call: W) -> None:
        """Watch ``call`` until it is removed."""
        self._calls[call] = None
        if call.end < self._next_look:
            self._look_at(call.end)

    def remove(self, call: W) -> None:
        """Stop watching ``call``, which may be unknown because its time was up."""
        self._calls.pop(call, None)

    def look(self, planned: float) -> None:
        """End the calls whose time is up, and set the timer for the next one.

        Args:
            planned: The time for which this timer was set; another may have been set since.
        """
        if planned != self._next_look:
            return
        self._next_look = inf
        now = asyncio.get_running_loop().time()
        for call in [each for each in self._calls if each.end <= now]:
            del self._calls[call]
            self._give_up(call)
        if self._calls:
            self._look_at(min(call.end for call in self._calls))

    def _look_at(self, end: float) -> None:
        """Set the timer. It keeps neither this object nor a caller's context variables alive."""
        self._next_look = end
        loop = asyncio.get_running_loop()
        loop.call_at(end, _look, weakref.WeakMethod(self.look), end, context=Context())


def _look(look: Callable[[], Callable[[float], None] | None], planned: float) -> None:
    found = look()
    if found is not None:
        found(planned)
