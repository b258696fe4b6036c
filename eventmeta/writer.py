"""Group commit: while one transaction commits, the commands for the next one gather.

No timer and no added delay: a lone caller's batch has one command, and under load batches grow by
themselves to what arrives during a commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from eventmeta.commands import Command
from eventmeta.deadline import Limits
from eventmeta.drafts import Outcome
from eventmeta.encoding import Order
from eventmeta.errors import EventMetaError
from eventmeta.settle import fail, give, settle

MAX_BATCH = 512
MAX_BATCH_BYTES = 2 * 2**20
MAX_WAITING = 4_096

_KNOWN_SOON = 0.25
"""Seconds in which a batch ends whose time is up."""

Commit = Callable[[Sequence[Command], Limits], Awaitable[list[Outcome | EventMetaError]]]


class ExpiredError(Protocol):
    """Makes the error of a call that has waited for as long as its limits let it."""

    def __call__(self, limits: Limits, *, unknown: bool) -> EventMetaError:
        """Return it; ``unknown`` where a change may have been recorded."""
        ...


@dataclass(slots=True, eq=False)
class _Entry:
    """A command, what became of it, and the end of the batch that it is part of."""

    command: Command
    limits: Limits
    end: float
    outcome: asyncio.Future[Outcome | EventMetaError]
    batch_ended: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None


class Writer:
    """The one writer of an engine in an event loop.

    Commands are carried out in the order in which they were submitted. There is a task only while
    there is work, so that a program may end without closing anything.
    """

    def __init__(self, commit: Commit, expired: ExpiredError) -> None:
        self._commit = commit
        self._expired = expired
        self.order = Order()
        self._waiting: deque[_Entry] = deque()
        self._places = asyncio.Semaphore(MAX_WAITING)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, command: Command, limits: Limits) -> Outcome | EventMetaError:
        """Carry out ``command`` with whatever else is waiting, within ``limits``.

        Waits for a place while too many commands are waiting. The caller of a cancelled call gets
        its CancelledError only when the outcome is settled: the command was either withdrawn
        before it began, or has been carried out to the end, or its time is up.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.timeout
        if self._places.locked():
            await self._wait_for_place(limits)
        else:
            await self._places.acquire()
        try:
            entry = _Entry(command, limits, end, loop.create_future())
            self._waiting.append(entry)
            if self._task is None:
                self._task = asyncio.create_task(self._work(), name="eventmeta-writer")
                self._task.add_done_callback(self._ended)
            entry.timer = loop.call_at(end, self._time_is_up, entry)
            try:
                return await self._settled(entry)
            finally:
                entry.timer.cancel()
        finally:
            self._places.release()

    async def _wait_for_place(self, limits: Limits) -> None:
        try:
            async with asyncio.timeout(limits.timeout):
                await self._places.acquire()
        except TimeoutError:
            raise self._expired(limits, unknown=False) from None

    def _time_is_up(self, entry: _Entry) -> None:
        """Withdraw the command, unless it is being carried out."""
        if entry.outcome.done():
            return
        if entry.batch_ended is not None:  # it may know better what has become of the command
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(_KNOWN_SOON, self._give_up, entry)
            return
        self._waiting.remove(entry)
        fail(entry.outcome, self._expired(entry.limits, unknown=False))

    def _give_up(self, entry: _Entry) -> None:
        """Let the caller go, whose batch goes on for the sake of others."""
        fail(entry.outcome, self._expired(entry.limits, unknown=True))

    async def _settled(self, entry: _Entry) -> Outcome | EventMetaError:
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            if entry.batch_ended is None:
                with suppress(ValueError):  # it was withdrawn at the same moment
                    self._waiting.remove(entry)
                raise
            left = entry.end - asyncio.get_running_loop().time()
            with suppress(asyncio.CancelledError):  # another one
                await settle(asyncio.shield(entry.batch_ended), seconds=left)
            raise

    async def drain(self) -> None:
        """Wait until all that was submitted is carried out."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._carry_out(self._take_batch())
        finally:
            self._end()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:  # cancelled before it could begin
            self._end()

    def _end(self) -> None:
        self._task = None
        # Only a task that was cancelled leaves anything: the loop is shutting down.
        for entry in self._waiting:
            entry.outcome.cancel()

    def _take_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH:
            size += self._waiting[0].command.size
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _carry_out(self, batch: list[_Entry]) -> None:
        """Carry out ``batch`` within the limits of its most patient caller."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        for entry in batch:
            entry.batch_ended = ended
        limits = Limits(
            max(entry.end for entry in batch) - loop.time(),
            max(entry.limits.retry_for for entry in batch),
        )
        try:
            outcomes = await self._commit([entry.command for entry in batch], limits)
            for entry, outcome in zip(batch, outcomes, strict=True):
                give(entry.outcome, outcome)
        except Exception as error:
            for entry in batch:
                fail(entry.outcome, error)
        finally:
            ended.set_result(None)
            for entry in batch:
                entry.outcome.cancel()
