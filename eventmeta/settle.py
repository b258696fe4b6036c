"""Waiting for an outcome, cancelled or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def settle(awaitable: Awaitable[T]) -> T:
    """Await ``awaitable`` to its end, and only then let a cancellation through.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile. Whatever was awaited has ended,
            its effects are complete or absent, and its own error, if any, is dropped.
    """
    future = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        take_notice(future)
        raise cancelled
    return future.result()


def take_notice(future: asyncio.Future[Any]) -> None:
    """Of its error, where whoever waited for it may have left: lest the event loop prints it."""
    if not future.cancelled():
        future.exception()
