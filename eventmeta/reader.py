"""Concurrent reads share a connection and, on SQLite, a thread hop.

As with writes, what arrives while one batch is being read makes the next. Every query runs after it
was asked, so it sees all that was acknowledged before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from eventmeta.dialects.statement import Query, Row

MAX_BATCH = 64
MAX_LANES = 2

Read = Callable[[Sequence[Query]], Awaitable[list[Sequence[Row]]]]


@dataclass(slots=True)
class _Entry:
    query: Query
    rows: asyncio.Future[Sequence[Row]]


class Reader:
    """The reader of an engine in an event loop; a slow read does not hold up all others."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: deque[_Entry] = deque()
        self._lanes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, query: Query) -> Sequence[Row]:
        """The rows of ``query``."""
        entry = _Entry(query, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._lanes < MAX_LANES:
            self._lanes += 1
            task = asyncio.create_task(self._work(), name="eventmeta-reader")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await entry.rows

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._read_batch()
        finally:
            self._lanes -= 1

    async def _read_batch(self) -> None:
        count = min(MAX_BATCH, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(count)]
        try:
            results = await self._read([entry.query for entry in batch])
        except BaseException as error:
            for entry in batch:
                if entry.rows.done():
                    continue
                if isinstance(error, Exception):
                    entry.rows.set_exception(error)
                else:
                    entry.rows.cancel()
            if not isinstance(error, Exception):
                raise
        else:
            for entry, rows in zip(batch, results, strict=True):
                if not entry.rows.done():
                    entry.rows.set_result(rows)
