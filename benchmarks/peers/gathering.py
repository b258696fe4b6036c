"""The least that gathers the calls of many: what comes while a batch is carried out is the next."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from benchmarks.peers.base import Item, Peer, Values

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


Set = tuple[str, Values]
Get = tuple[str, Sequence[str]]
Add = tuple[str, list[Item]]
GetItems = tuple[str, int]


class Gathered(Peer):
    """The bare driver for many callers, each with a session of its own."""

    name: ClassVar[str] = "gathered-driver"

    @cached_property
    def _sets(self) -> Gathering[Set, None]:
        return Gathering(self._set_all)

    @cached_property
    def _gets(self) -> Gathering[Get, dict[str, Any]]:
        return Gathering(self._get_all)

    @cached_property
    def _adds(self) -> Gathering[Add, None]:
        return Gathering(self._add_all)

    @cached_property
    def _item_gets(self) -> Gathering[GetItems, list[Item]]:
        return Gathering(self._get_all_items)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        await self._sets.call((session_id, metadata))

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        return await self._gets.call((session_id, keys))

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        await self._adds.call((session_id, items))

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        return await self._item_gets.call((session_id, limit))

    @abstractmethod
    async def _set_all(self, requests: list[Set]) -> list[None]: ...

    @abstractmethod
    async def _get_all(self, requests: list[Get]) -> list[dict[str, Any]]: ...

    @abstractmethod
    async def _add_all(self, requests: list[Add]) -> list[None]: ...

    @abstractmethod
    async def _get_all_items(self, requests: list[GetItems]) -> list[list[Item]]: ...
