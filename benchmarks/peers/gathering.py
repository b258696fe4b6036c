"""The least that gathers the calls of many: what comes while a batch is carried out is the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class Gathering(Generic[Request, Result]):
    """Calls of one kind."""

    def __init__(self, carry_out: Callable[[list[Request]], Awaitable[Sequence[Result]]]) -> None:
        self._carry_out = carry_out
        self._waiting: list[tuple[Request, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def call(self, request: Request) -> Result:
        """The result of ``request``."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, result))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await result

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                results = await self._carry_out([request for request, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
        finally:
            self._task = None
