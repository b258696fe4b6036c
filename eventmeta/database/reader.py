"""The reader: concurrent reads share a connection, and reads of one kind share a query.

As with writes, the requests that arrive while one batch is read make up the next batch. Every query
runs after its callers asked, so it sees all writes that were acknowledged before. A lone caller
reads at once, without a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from eventmeta.core.contexts import alike, run_in
from eventmeta.core.database_errors import DatabaseUnavailable
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.settle import fail, give
from eventmeta.core.timeouts import Timeouts
from eventmeta.dialects.statement import Query, Row, Statement, recordset

MAX_BATCH = 64
MAX_LANES = 2

Read = Callable[[Sequence[Query], Limits], Awaitable[list[Sequence[Row]]]]
ExpiredError = Callable[[Limits], EventMetaError]


@dataclass(frozen=True, eq=False)
class Lookup:
    """A read that many callers make at once, each with keys of its own.

    Attributes:
        together: The statement for several callers. Its parameter ``requests`` is a record set of
            each caller's request and number ``n``; each row begins with ``n``. None if callers
            cannot share a query.
        alone: The statement for one caller, whose request is its parameters. None if it would be no
            faster.
    """

    together: Statement | None
    alone: Statement | None = None

    def query(self, requests: Sequence[dict[str, Any]]) -> Query:
        """Return the query for the ``requests`` of all callers."""
        if self.alone is not None and len(requests) == 1:
            return self.alone(n=0, **requests[0])
        assert self.together is not None
        numbered = [{"n": n, **request} for n, request in enumerate(requests)]
        return self.together(requests=recordset(numbered))


@dataclass(slots=True, eq=False)
class _Entry:
    read: Query | Lookup
    request: dict[str, Any]
    limits: Limits
    end: float
    rows: asyncio.Future[Sequence[Row]]
    context: Context

    @property
    def kind(self) -> Lookup | _Entry:
        """Return the key by which requests share a query."""
        read = self.read
        return read if isinstance(read, Lookup) and read.together is not None else self


class Reader:
    """The reader of an engine in one event loop. A slow read does not hold up all others."""

    def __init__(
        self, read: Read, expired: ExpiredError, is_for_one: Callable[[], bool] = lambda: False
    ) -> None:
        """Make a reader.

        Args:
            read: Runs the queries of a batch.
            expired: Makes the error of a caller whose time is up.
            is_for_one: Returns whether each batch must be of one context, and run in that context.
        """
        self._read = read
        self._expired = expired
        self._is_for_one = is_for_one
        self._timeouts: Timeouts[_Entry] = Timeouts(self._give_up)
        self._waiting: deque[_Entry] = deque()
        self._lanes = 0
        self._is_calm = True
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, read: Query | Lookup, limits: Limits, /, **request: Any) -> Sequence[Row]:
        """Return the rows of ``read`` for ``request``. The rows of a lookup begin with a number.

        Raises:
            DatabaseUnavailable: The rows did not come within ``limits``.
        """
        if self._is_calm and not self._lanes:
            return await self._read_at_once(read, request, limits)
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.timeout
        entry = _Entry(read, request, limits, end, loop.create_future(), copy_context())
        self._waiting.append(entry)
        if self._lanes < MAX_LANES:
            self._open_lane()
        self._timeouts.add(entry)
        try:
            return await entry.rows
        finally:
            self._timeouts.remove(entry)

    def _give_up(self, entry: _Entry) -> None:
        """Fail the caller's request. Its batch goes on for the other callers."""
        fail(entry.rows, self._expired(entry.limits))

    async def _read_at_once(
        self, read: Query | Lookup, request: dict[str, Any], limits: Limits
    ) -> Sequence[Row]:
        """Read without a task, while nobody else is reading."""
        self._lanes += 1
        try:
            (rows,) = await self._read([query_for(read, [request])], limits)
            return rows
        finally:
            self._lanes -= 1
            if self._waiting and self._lanes < MAX_LANES:
                self._open_lane()

    def _open_lane(self) -> None:
        self._lanes += 1
        task = asyncio.create_task(self._work(), name="eventmeta-reader")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        try:
            while self._waiting:
                is_for_one = self._is_for_one()
                batch = self._take_batch(of_one_context=is_for_one)
                self._is_calm = len(batch) == 1 and not self._waiting
                batch = [entry for entry in batch if not entry.rows.done()]
                if batch:
                    work = self._carry_out(batch)
                    await (run_in(batch[0].context, work) if is_for_one else work)
        except asyncio.CancelledError:  # the loop is shutting down
            for entry in self._waiting:
                entry.rows.cancel()
            raise
        finally:
            self._lanes -= 1

    def _take_batch(self, *, of_one_context: bool) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < MAX_BATCH:
            if of_one_context and batch and not alike(batch[0].context, self._waiting[0].context):
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _carry_out(self, batch: Sequence[_Entry]) -> None:
        """Read for ``batch``, within the longest limits of its callers."""
        groups: dict[Lookup | _Entry, list[_Entry]] = {}
        for entry in batch:
            groups.setdefault(entry.kind, []).append(entry)
        limits = Limits(
            max(entry.end for entry in batch) - asyncio.get_running_loop().time(),
            max(entry.limits.retry_for for entry in batch),
        )
        try:
            queries = [_query_of(entries) for entries in groups.values()]
            results = await self._read(queries, limits)
            for entries, rows in zip(groups.values(), results, strict=True):
                _deliver(entries, rows)
        except Exception as error:
            if len(batch) == 1 or isinstance(error, DatabaseUnavailable):
                for entry in batch:
                    fail(entry.rows, error)
            # One of the requests may be bad: read for each caller separately.
            for entry in batch:
                if not entry.rows.done():
                    await self._carry_out([entry])
        finally:
            for entry in batch:
                entry.rows.cancel()


def _query_of(entries: Sequence[_Entry]) -> Query:
    return query_for(entries[0].read, [entry.request for entry in entries])


def query_for(read: Query | Lookup, requests: Sequence[dict[str, Any]]) -> Query:
    """Return the query of ``read`` for the ``requests`` of all callers."""
    return read.query(requests) if isinstance(read, Lookup) else read


def _deliver(entries: Sequence[_Entry], rows: Sequence[Row]) -> None:
    shares: list[Sequence[Row]] = [rows]
    if len(entries) > 1:
        dealt: dict[int, list[Row]] = {n: [] for n in range(len(entries))}
        for row in rows:
            dealt[row[0]].append(row)
        shares = list(dealt.values())
    for entry, share in zip(entries, shares, strict=True):
        give(entry.rows, share)
