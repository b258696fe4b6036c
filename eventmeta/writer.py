"""Group commit: while one transaction commits, the commands for the next one gather.

No timer and no added delay: a lone caller's batch has one command, and under load batches grow by
themselves to what arrives during a commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from eventmeta.commands import Command
from eventmeta.drafts import Outcome
from eventmeta.errors import EventMetaError
from eventmeta.lanes import MAX_IN_LINE, Commit, Entry, Lanes, carry_out
from eventmeta.settle import settle

MAX_BATCH = 512
MAX_BATCH_BYTES = 2 * 2**20
MAX_WAITING = 4_096


class Writer:
    """The one writer of an engine in an event loop.

    Commands of one session or user are carried out in the order in which they were submitted. There
    is a task only while there is work, so that a program may end without closing anything.
    """

    def __init__(self, commit: Commit, *, in_line: int = MAX_IN_LINE) -> None:
        """Take what carries out a batch, and how many connections may wait for what is held."""
        self._commit = commit
        self._waiting: deque[Entry] = deque()
        self._places = asyncio.Semaphore(MAX_WAITING)
        self._lanes = Lanes(commit, _take_batch, in_line)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, command: Command) -> Outcome | EventMetaError:
        """Carry out ``command`` with whatever else is waiting.

        Waits for a place while too many commands are waiting. The caller of a cancelled call gets
        its CancelledError only when the outcome is settled: the command was either withdrawn
        before it began, or has been carried out to the end.
        """
        entry = Entry(command, asyncio.get_running_loop().create_future(), self._waiting)
        try:
            if not await self._lanes.place(entry):
                await self._places.acquire()
                entry.place = self._places
                self._queue(entry)
            return await self._settled(entry)
        finally:
            entry.leave_place()

    def _queue(self, entry: Entry) -> None:
        if entry.command.stream in self._lanes:  # opened since it has waited for a place
            self._step_out(entry)
            return
        self._waiting.append(entry)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="eventmeta-writer")
            self._task.add_done_callback(self._ended)

    def _step_out(self, entry: Entry) -> None:
        entry.leave_place()
        self._lanes.add(entry)

    async def _settled(self, entry: Entry) -> Outcome | EventMetaError:
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            if entry.batch_ended is None:
                with suppress(ValueError):  # its lane has just let it go
                    entry.queue.remove(entry)
                raise
            with suppress(asyncio.CancelledError):  # another one
                await settle(entry.batch_ended)
            raise

    async def drain(self) -> None:
        """Wait until all that was submitted is carried out."""
        while tasks := [*self._lanes.tasks, *([self._task] if self._task else [])]:
            await asyncio.wait(tasks)

    async def _work(self) -> None:
        try:
            while self._waiting:
                held = await carry_out(_take_batch(self._waiting), self._commit)
                if held:
                    self._open_lanes(held)
        finally:
            self._end()

    def _open_lanes(self, held: list[Entry]) -> None:
        """Have ``held`` step out of the way of others, and behind them what waits for the same."""
        for entry in held:
            self._step_out(entry)
        staying: list[Entry] = []
        for entry in self._waiting:
            if entry.command.stream in self._lanes:
                self._step_out(entry)
            else:
                staying.append(entry)
        self._waiting.clear()
        self._waiting.extend(staying)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:  # cancelled before it could begin
            self._end()

    def _end(self) -> None:
        self._task = None
        # Only a task that was cancelled leaves anything: the loop is shutting down.
        for entry in self._waiting:
            entry.outcome.cancel()


def _take_batch(waiting: deque[Entry]) -> list[Entry]:
    batch: list[Entry] = []
    size = 0
    while waiting and len(batch) < MAX_BATCH:
        size += waiting[0].command.size
        if batch and size > MAX_BATCH_BYTES:
            break
        batch.append(waiting.popleft())
    return batch
