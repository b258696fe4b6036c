"""Waiting for an outcome even if the caller is cancelled, and passing it to those who wait."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from eventmeta.core.deadline import Deadline

T = TypeVar("T")


async def run_to_completion(awaitable: Awaitable[T], *, seconds: float | None = None) -> T:
    """Await ``awaitable`` to its end, and only then raise a cancellation.

    Args:
        awaitable: The work to await.
        seconds: The longest that a cancelled caller waits; None for no such limit. Within a
            `Deadline`, a caller waits no longer than a second after that.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile. The work has ended, unless the
            time was up; its effects are complete or absent, and its own error, if any, is dropped.
    """
    future = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        with _shield():
            await _wait_on(future, seconds)
        future.add_done_callback(retrieve_exception)
        raise
    return future.result()


async def _wait_on(future: asyncio.Future[Any], seconds: float | None) -> None:
    """Wait for ``future``, even if the task is cancelled several times meanwhile."""
    loop, deadline = asyncio.get_running_loop(), Deadline.current()
    end = None if seconds is None else loop.time() + seconds
    while not (future.done() or (deadline is not None and deadline.is_hopeless)):
        left = None if end is None else end - loop.time()
        if left is not None and left <= 0:
            return
        try:
            await asyncio.wait([future], timeout=left)
        except asyncio.CancelledError:
            continue


def _shield() -> AbstractContextManager[Any]:
    """Return a block that keeps anyio, if the app uses it, from cancelling the task repeatedly.

    anyio cancels a task in a cancelled scope again in each turn of the event loop until the task
    has left the scope. Waiting there without a shield would keep the processor busy.
    """
    anyio = sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


def retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Mark the future's exception as retrieved, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


def give(future: asyncio.Future[T], result: T) -> None:
    """Set ``result`` on ``future``, unless it is done already."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Set ``error`` on ``future``, unless it is done already."""
    if not future.done():
        future.set_exception(error)
        retrieve_exception(future)  # the task that awaits it may be cancelled at this moment
