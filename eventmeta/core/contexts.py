"""Whose request something is done for, as context variables say it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


def alike(one: Context, other: Context) -> bool:
    """Return whether all variables have equal values in both."""
    try:
        return one == other
    except Exception:  # of values that cannot be compared
        return False


async def run_in(context: Context, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` in a task of its own that has the variables of ``context``.

    A cancellation is passed on, and waited for.
    """
    task = asyncio.get_running_loop().create_task(work, context=context)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
