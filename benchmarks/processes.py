"""Several processes on one database: a crew in each, told what to do through a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from benchmarks.crew import Crew, Team, Turn
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.slow_disk import slow_sqlite


@dataclass(frozen=True)
class Job:
    """Who calls what, in one process.

    Attributes:
        peer: Its name.
        backend: Where it runs.
        url: Its database.
        scenario: Its name.
        names: The sessions, one for each caller.
        fsync_ms: How much longer a commit takes.
        supply: For how many calls of each there is something to use up.
    """

    peer: str
    backend: str
    url: str
    scenario: str
    names: list[str]
    fsync_ms: float = 0
    supply: int = 5


async def crew(job: Job) -> Crew:
    """The callers of a job, in this process."""
    scenario = SCENARIOS[job.scenario]
    assert isinstance(scenario, Scenario)
    peer = await PEERS[job.peer].load(job.backend).open(job.url)
    return Crew(peer, scenario, job.names, job.supply)


class Crews:
    """A crew in each of several processes, which work at the same time."""

    def __init__(self, running: list[tuple[BaseProcess, Connection]]) -> None:
        self._running = running
        self._broken_off = False

    @classmethod
    async def start(cls, jobs: Sequence[Job]) -> Self:
        """One process for each job, forked from a server process that has imported the peer."""
        context = multiprocessing.get_context("forkserver")
        modules = {PEERS[job.peer].load(job.backend).__module__ for job in jobs}
        context.set_forkserver_preload([__name__, *modules])
        with _deaf_to_interrupts():
            forkserver.ensure_running()
        running: list[tuple[BaseProcess, Connection]] = []
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((process, ours))
        team = cls(running)
        try:
            for _, pipe in running:
                await team._one(pipe, "open")  # one after the other, as the first makes the tables
        except BaseException:
            team._broken_off = True
            team._end()
            raise
        return team

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What the method gives in each process; all begin before the first has ended."""
        for _, pipe in self._running:
            pipe.send((method, arguments))
        answers = [await self._answer(pipe) for _, pipe in self._running]
        return [_checked(answer) for answer in answers]

    async def _one(self, pipe: Connection, method: str, *arguments: Any) -> Any:
        pipe.send((method, arguments))
        return _checked(await self._answer(pipe))

    async def _answer(self, pipe: Connection) -> Any:
        try:
            return await asyncio.to_thread(pipe.recv)
        except BaseException:
            self._broken_off = True  # what comes next would be this answer
            raise

    async def prepare(self, stored: int) -> None:
        """Only the first stores what nobody calls."""
        for number, (_, pipe) in enumerate(self._running):
            await self._one(pipe, "prepare", 0 if number else stored)

    async def warm_up(self) -> None:
        await self._all("warm_up")

    async def turn(self, seconds: float) -> Turn:
        """What all have done, from the moment they were told until the last one was ready."""
        turns: list[Turn] = await self._all("turn", seconds)
        return Turn(
            sum(turn.units for turn in turns),
            max(turn.seconds for turn in turns),
            [latency for turn in turns for latency in turn.latencies],
            sum(turn.failures for turn in turns),
            next((turn.error for turn in turns if turn.error), ""),
        )

    async def check(self) -> None:
        await self._all("check")

    async def prove(self) -> str:
        proof: str = await self._one(self._running[0][1], "prove")
        return proof

    async def close(self) -> None:
        try:
            if not self._broken_off:
                await self._all("close")
        finally:
            self._end()

    def _end(self) -> None:
        for process, pipe in self._running:
            if self._broken_off:
                process.terminate()
                process.join()
            pipe.close()  # which a process takes as the end
            process.join()


@contextmanager
def _deaf_to_interrupts() -> Generator[None]:
    """Programs that are started inside the block ignore Ctrl-C from their first moment on."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _checked(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(job: Job, pipe: Connection) -> None:
    """The life of a process: it does what it is told, and answers, until the pipe is closed.

    Ctrl-C is for the one that tells it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    team: Team | None = None
    with slow_sqlite(job.fsync_ms), asyncio.Runner() as runner, suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            answer: Any = None
            try:
                if team is None:
                    team = runner.run(crew(job))
                else:
                    answer = runner.run(getattr(team, method)(*arguments))
            except Exception as error:
                answer = error
            pipe.send(answer)
