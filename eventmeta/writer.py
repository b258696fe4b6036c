"""Group commit: while one transaction commits, the commands for the next one gather.

No timer and no added delay: a lone caller's batch has one command, and under load batches grow by
themselves to what arrives during a commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from eventmeta.commands import Command
from eventmeta.contexts import alike, run_in
from eventmeta.drafts import Outcome
from eventmeta.errors import EventMetaError
from eventmeta.settle import settle

MAX_BATCH = 512
MAX_BATCH_BYTES = 2 * 2**20
MAX_WAITING = 4_096

Commit = Callable[[Sequence[Command]], Awaitable[list[Outcome | EventMetaError]]]


@dataclass(slots=True, eq=False)
class _Entry:
    """A command, what became of it, and the end of the batch that it is part of."""

    command: Command
    outcome: asyncio.Future[Outcome | EventMetaError]
    batch_ended: asyncio.Future[None] | None = None
    context: Context = field(default_factory=copy_context)


class Writer:
    """The one writer of an engine in an event loop.

    Commands are carried out in the order in which they were submitted. There is a task only while
    there is work, so that a program may end without closing anything.
    """

    def __init__(self, commit: Commit, is_for_one: Callable[[], bool] = lambda: False) -> None:
        """Write by ``commit``, batches of one context each, in that, if ``is_for_one`` says so."""
        self._commit = commit
        self._is_for_one = is_for_one
        self._waiting: deque[_Entry] = deque()
        self._places = asyncio.Semaphore(MAX_WAITING)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, command: Command) -> Outcome | EventMetaError:
        """Carry out ``command`` with whatever else is waiting.

        Waits for a place while too many commands are waiting. The caller of a cancelled call gets
        its CancelledError only when the outcome is settled: the command was either withdrawn
        before it began, or has been carried out to the end.
        """
        async with self._places:
            entry = _Entry(command, asyncio.get_running_loop().create_future())
            self._waiting.append(entry)
            if self._task is None:
                self._task = asyncio.create_task(self._work(), name="eventmeta-writer")
                self._task.add_done_callback(self._ended)
            return await self._settled(entry)

    async def _settled(self, entry: _Entry) -> Outcome | EventMetaError:
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            if entry.batch_ended is None:
                self._waiting.remove(entry)
                raise
            with suppress(asyncio.CancelledError):  # another one
                await settle(entry.batch_ended)
            raise

    async def drain(self) -> None:
        """Wait until all that was submitted is carried out."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._waiting:
                for_one = self._is_for_one()
                batch = self._take_batch(for_one=for_one)
                work = self._carry_out(batch)
                await (run_in(batch[0].context, work) if for_one else work)
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

    def _take_batch(self, *, for_one: bool) -> list[_Entry]:
        batch: list[_Entry] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH:
            if batch and for_one and not alike(batch[0].context, self._waiting[0].context):
                break
            size += self._waiting[0].command.size
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _carry_out(self, batch: list[_Entry]) -> None:
        ended = asyncio.get_running_loop().create_future()
        for entry in batch:
            entry.batch_ended = ended
        try:
            outcomes = await self._commit([entry.command for entry in batch])
            for entry, outcome in zip(batch, outcomes, strict=True):
                if not entry.outcome.done():
                    entry.outcome.set_result(outcome)
        except Exception as error:
            for entry in batch:
                if not entry.outcome.done():
                    entry.outcome.set_exception(error)
        finally:
            ended.set_result(None)
            for entry in batch:
                entry.outcome.cancel()
