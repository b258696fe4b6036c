"""Running work in the context of another task, which tells whose request the work is for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


def alike(one: Context, other: Context) -> bool:
    """Return whether all variables have equal values in both contexts."""
    try:
        return one == other
    except Exception:  # values that cannot be compared
        return False


async def run_in(context: Context, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` in a new task that has the variables of ``context``.

    If the caller is cancelled, the task is cancelled too, and its end is awaited.
    """
    task = asyncio.get_running_loop().create_task(work, context=context)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
