"""Group commit: while one transaction commits, the commands for the next one gather.

There is no timer and no added delay. A lone caller's batch has one command. Under load, a batch
has all commands that arrived during the previous commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Protocol

from eventmeta.core.contexts import alike
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.settle import fail, give, run_to_completion
from eventmeta.core.timeouts import Timeouts
from eventmeta.core.write_order import Order
from eventmeta.log.commands import Command
from eventmeta.log.lanes import MAX_IN_LINE, Batch, Commit, Entry, Lanes, carry_out
from eventmeta.log.pending_event import Outcome

MAX_BATCH = 512
MAX_BATCH_BYTES = 2 * 2**20
MAX_WAITING = 4_096

_KNOWN_SOON = 0.25
"""Seconds that a running batch has to report the outcome of a command whose time is up."""


class ExpiredError(Protocol):
    """A function that makes the error of a call that did not end within its limits."""

    def __call__(self, limits: Limits, *, unknown: bool) -> EventMetaError:
        """Return the error; ``unknown`` says that a change may have been recorded."""
        ...


class Writer:
    """The one writer of an engine in an event loop.

    Commands of one session or user are carried out in the order in which they were submitted. There
    is a task only while there is work, so a program may end without closing anything.
    """

    def __init__(
        self,
        commit: Commit,
        expired: ExpiredError,
        *,
        in_line: int = MAX_IN_LINE,
        is_for_one: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the writer.

        Args:
            commit: Carries out a batch.
            expired: Makes the error of a caller whose time is up.
            in_line: How many connections may wait for heads that other transactions hold.
            is_for_one: Returns whether a batch must be of one context, and carried out in it.
        """
        self._is_for_one = is_for_one
        self._commit = commit
        self._expired = expired
        self.order = Order(lambda limits: expired(limits, unknown=False))
        self._waiting: deque[Entry] = deque()
        self._arriving: deque[Entry] = deque()  # they wait for one of the places
        self._free_places = MAX_WAITING
        self._lanes = Lanes(commit, self._take_batch, in_line)
        self._timeouts: Timeouts[Entry] = Timeouts(self._time_is_up)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, command: Command, limits: Limits) -> Outcome | EventMetaError:
        """Carry out ``command`` in one batch with other waiting commands, within ``limits``.

        The call waits for a place while too many commands are waiting. If the call is cancelled,
        CancelledError is raised only when the outcome is settled: the command was withdrawn before
        it began, or was carried out to the end, or its time is up.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.timeout
        entry = Entry(command, limits, end, loop.create_future(), self._waiting, copy_context())
        try:
            if command.stream in self._lanes:
                await self._join_lane(entry)
            elif self._free_places:
                self._queue(entry)
            else:
                entry.queue = self._arriving
                self._arriving.append(entry)
            self._timeouts.add(entry)
            return await self._settled(entry)
        finally:
            self._timeouts.remove(entry)
            entry.leave_place()

    async def _join_lane(self, entry: Entry) -> None:
        try:
            async with asyncio.timeout_at(entry.end):
                await self._lanes.place(entry)
        except TimeoutError:
            raise self._expired(entry.limits, unknown=False) from None

    def _time_is_up(self, entry: Entry) -> None:
        """Withdraw a command whose time is up, unless it is being carried out."""
        if entry.outcome.done():
            return
        if entry.batch_ended is not None:  # the batch may soon tell the outcome of the command
            asyncio.get_running_loop().call_later(_KNOWN_SOON, self._give_up, entry)
            return
        with suppress(ValueError):  # its lane has just removed it
            entry.queue.remove(entry)
        if entry.busy is not None:
            give(entry.outcome, entry.busy)
        else:
            fail(entry.outcome, self._expired(entry.limits, unknown=False))

    def _give_up(self, entry: Entry) -> None:
        """Fail the caller's command. Its batch goes on for the other callers."""
        fail(entry.outcome, self._expired(entry.limits, unknown=True))

    def _queue(self, entry: Entry) -> None:
        self._free_places -= 1
        entry.place = self._place_left
        entry.queue = self._waiting
        self._waiting.append(entry)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="eventmeta-writer")
            self._task.add_done_callback(self._ended)

    def _place_left(self) -> None:
        self._free_places += 1
        if self._arriving:
            self._queue(self._arriving.popleft())

    async def _settled(self, entry: Entry) -> Outcome | EventMetaError:
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            if entry.batch_ended is None:
                with suppress(ValueError):  # its lane has just removed it
                    entry.queue.remove(entry)
                raise
            left = entry.end - asyncio.get_running_loop().time()
            with suppress(asyncio.CancelledError):  # a second cancellation
                await run_to_completion(asyncio.shield(entry.batch_ended), seconds=left)
            raise

    async def drain(self) -> None:
        """Wait until all submitted commands are carried out."""
        while tasks := [*self._lanes.tasks, *([self._task] if self._task else [])]:
            await asyncio.wait(tasks)

    async def _work(self) -> None:
        try:
            while self._waiting:
                held = await carry_out(self._take_batch(self._waiting), self._commit)
                if held:
                    self._open_lanes(held)
        finally:
            self._end()

    def _open_lanes(self, held: list[Entry]) -> None:
        """Move ``held`` into lanes, and behind them all later commands of the same streams."""
        streams = {entry.command.stream for entry in held}
        moved = [*held]
        for queue in (self._waiting, self._arriving):
            moved += [entry for entry in queue if entry.command.stream in streams]
            staying = [entry for entry in queue if entry.command.stream not in streams]
            queue.clear()
            queue.extend(staying)
        for entry in moved:
            self._lanes.add(entry)
        for entry in moved:
            entry.leave_place()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:  # cancelled before it could begin
            self._end()

    def _end(self) -> None:
        self._task = None
        # Only a cancelled task leaves commands behind: the loop is shutting down.
        for entry in self._waiting:
            entry.outcome.cancel()

    def _take_batch(self, waiting: deque[Entry]) -> Batch:
        is_for_one = self._is_for_one()
        batch: list[Entry] = []
        size = 0
        while waiting and len(batch) < MAX_BATCH:
            entry = waiting[0]
            if is_for_one and batch and not alike(batch[0].context, entry.context):
                break
            size += entry.command.size
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(waiting.popleft())
        return Batch(batch, batch[0].context if is_for_one else None)
