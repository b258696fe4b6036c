"""Lanes: queues of commands for streams that another open transaction holds.

A lane keeps the order of its commands, and no other stream waits for them. Later commands of the
same stream join the lane until it is empty.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from eventmeta.core.contexts import run_in
from eventmeta.core.database_errors import DatabaseBusy
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import StreamKey
from eventmeta.core.settle import fail, give
from eventmeta.log.commands import Command
from eventmeta.log.pending_event import Outcome

HELD_SECONDS = 15.0
"""For how many seconds a command waits in a lane, at least."""

MAX_IN_LANE = 512
"""How many commands may wait in one lane; further callers wait for a place in it."""

MAX_IN_LINE = 4
"""How many lanes may each use a connection to wait for the lock, which is granted in turn."""

PAUSES = 0.01, 0.25
"""The first and the longest pause, in seconds, between two attempts of the other lanes."""


class Commit(Protocol):
    """A function that carries out a batch."""

    def __call__(
        self, commands: Sequence[Command], limits: Limits, /, *, waits: bool = False
    ) -> Coroutine[Any, Any, list[Outcome | EventMetaError]]:
        """Carry out the commands: see `Appender.commit`."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """A submitted command whose outcome is not known yet.

    Attributes:
        command: The command.
        limits: How long its caller waits.
        end: When the caller's time is up, in the time of the event loop.
        outcome: The outcome of the command.
        queue: The queue in which it waits, unless it is being carried out.
        batch_ended: The end of the batch that it is part of; None while it waits.
        place: The function that releases the place that it takes; None without a place.
        busy: The error because of which it is in a lane.
        until: When it has waited in its lane for long enough, in the time of the event loop.
        context: The context variables of its caller.
    """

    command: Command
    limits: Limits
    end: float
    outcome: asyncio.Future[Outcome | EventMetaError]
    queue: deque[Entry]
    context: Context
    batch_ended: asyncio.Future[None] | None = None
    place: Callable[[], None] | None = None
    busy: DatabaseBusy | None = None
    until: float = 0.0

    def leave_place(self) -> None:
        """Release the place for another command."""
        if self.place is not None:
            release, self.place = self.place, None
            release()


class Batch(NamedTuple):
    """The commands that are carried out in one transaction.

    Attributes:
        entries: The commands, in their order.
        context: The context of all their callers, in which to carry them out; None for any.
    """

    entries: Sequence[Entry]
    context: Context | None


async def carry_out(batch: Batch, commit: Commit, *, waits: bool = False) -> list[Entry]:
    """Carry out ``batch`` by ``commit``, and return the commands whose stream is held.

    The batch has as much time as the most patient of its callers.
    """
    entries, context = batch
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    for entry in entries:
        entry.batch_ended = ended
    limits = Limits(
        max(entry.end for entry in entries) - loop.time(),
        max(entry.limits.retry_for for entry in entries),
    )
    held: list[Entry] = []
    try:
        work = commit([entry.command for entry in entries], limits, waits=waits)
        outcomes = await (work if context is None else run_in(context, work))
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, DatabaseBusy) and outcome.held and not entry.outcome.done():
                entry.batch_ended, entry.busy = None, outcome
                held.append(entry)
            else:
                give(entry.outcome, outcome)
    except Exception as error:
        for entry in entries:
            fail(entry.outcome, error)
    finally:
        ended.set_result(None)
        for entry in entries:
            if entry.batch_ended is not None:
                entry.outcome.cancel()
    return held


class Lanes:
    """The lanes of a writer. Each lane has a task while there are commands in it."""

    def __init__(self, commit: Commit, take: Callable[[deque[Entry]], Batch], in_line: int) -> None:
        self._commit = commit
        self._take = take
        self._in_line = asyncio.Semaphore(in_line)
        self._looking = asyncio.Semaphore(1)
        self._lanes: dict[StreamKey, _Lane] = {}

    def __contains__(self, stream: StreamKey) -> bool:
        return stream in self._lanes

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of all lanes."""
        return [lane.task for lane in self._lanes.values()]

    def add(self, entry: Entry) -> None:
        """Put ``entry`` into the lane of its stream, and open the lane if there is none."""
        stream = entry.command.stream
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = _Lane()
            lane.task = asyncio.create_task(self._work(stream, lane), name="eventmeta-lane")
            lane.task.add_done_callback(lambda _: self._end(stream, lane))
        entry.until = entry.until or asyncio.get_running_loop().time() + HELD_SECONDS
        entry.queue = lane.waiting
        lane.waiting.append(entry)

    async def place(self, entry: Entry) -> None:
        """Put ``entry`` into the lane of its stream, which is open, when there is a place in it."""
        lane = self._lanes[entry.command.stream]
        lane.arriving += 1
        try:
            await lane.places.acquire()
        finally:
            lane.arriving -= 1
        entry.place = lane.places.release
        self.add(entry)

    async def _work(self, stream: StreamKey, lane: _Lane) -> None:
        pause = PAUSES[0]
        try:
            while lane.waiting or lane.arriving:
                held = await self._attempt(lane.waiting)
                lane.waiting.extendleft(reversed(held))
                pause = min(2 * pause, PAUSES[1]) if held else PAUSES[0]
                if held or not lane.waiting:  # sleep(0) lets arriving callers take their turn
                    await asyncio.sleep(pause if held else 0)
        finally:
            self._end(stream, lane)

    async def _attempt(self, waiting: deque[Entry]) -> list[Entry]:
        waits = not self._in_line.locked()
        async with self._in_line if waits else self._looking:
            batch = self._next(waiting)
            return await carry_out(batch, self._commit, waits=waits) if batch.entries else []

    def _next(self, waiting: deque[Entry]) -> Batch:
        """Take the next batch, and give up commands that have waited for long enough."""
        now = asyncio.get_running_loop().time()
        entries: list[Entry] = []
        context: Context | None = None
        while waiting and not entries:
            taken, context = self._take(waiting)
            for entry in taken:
                if entry.busy is None or now < entry.until:
                    entries.append(entry)
                else:
                    give(entry.outcome, entry.busy)
        return Batch(entries, context)

    def _end(self, stream: StreamKey, lane: _Lane) -> None:
        if self._lanes.get(stream) is lane:
            del self._lanes[stream]
        # Only a cancelled task leaves commands behind: the loop is shutting down.
        for entry in lane.waiting:
            entry.outcome.cancel()


class _Lane:
    """A queue of commands for one stream.

    Attributes:
        arriving: How many callers wait for a place.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()
        self.places = asyncio.Semaphore(MAX_IN_LANE)
        self.arriving = 0
