"""Fault injection: cancel a call at each of the points where it can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a call ended that was to be cancelled at its n-th suspension point."""

    point: int
    reached: bool
    """Whether the call got to that point, and so was cancelled there; else it ran undisturbed."""
    cancelled: bool
    """Whether it ended in CancelledError."""
    error: Exception | None
    """The other exception that it raised."""
    result: T | None
    """What it returned."""


class _CancelledAt(Generic[T]):
    """Awaits something, and cancels the awaiting task at its n-th suspension.

    A suspension is what the event loop sees of an ``await``: the future that the task now waits
    for, or None for a mere turn of the loop. Awaits that do not suspend cannot be cancelled.
    """

    def __init__(self, awaitable: Awaitable[T], point: int, late: bool) -> None:
        self._awaitable = awaitable
        self._left = point
        self._late = late

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._awaitable.__await__()
        resume: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                waiting_for = resume()
            except StopIteration as stop:
                return cast(T, stop.value)
            self._suspended(waiting_for)
            try:
                sent = yield waiting_for
            except BaseException as error:
                resume = partial(steps.throw, error)
            else:
                resume = partial(steps.send, sent)

    def _suspended(self, waiting_for: Any) -> None:
        self._left -= 1
        if self._left != 0:
            return
        task = asyncio.current_task()
        assert task is not None
        if self._late and asyncio.isfuture(waiting_for):
            waiting_for.add_done_callback(lambda done: task.cancel())
        else:
            task.cancel()


async def cancel_at(
    point: int,
    make_awaitable: Callable[[], Awaitable[T]],
    *,
    late: bool = False,
    timeout: float = 30.0,
) -> Outcome[T]:
    """Run the call in a task, and cancel that at its n-th suspension point, counted from 1.

    The task is cancelled as it begins to wait; with ``late``, when what it waits for has just been
    done but the call has not yet gone on: the work is finished, and its result gets lost. A call
    that has not ended ``timeout`` seconds later hangs: TimeoutError.
    """

    async def run() -> T:
        return await cancelling

    cancelling = _CancelledAt(make_awaitable(), point, late)
    task = asyncio.create_task(run())
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError(f"hangs, cancelled at its suspension point {point}")
    cancelled = task.cancelled()
    error = None if cancelled else task.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    result = None if cancelled or error else task.result()
    return Outcome(point, cancelling.reached, cancelled, error, result)


async def cancel_everywhere(
    make_awaitable: Callable[[], Awaitable[T]], *, late: bool = False, timeout: float = 30.0
) -> AsyncIterator[Outcome[T]]:
    """Make the call again and again, cancelled at point 1, 2, 3, …, until one runs undisturbed.

    That last outcome, with ``reached`` false, comes too.
    """
    reached, point = True, 0
    while reached:
        point += 1
        outcome = await cancel_at(point, make_awaitable, late=late, timeout=timeout)
        yield outcome
        reached = outcome.reached
