"""One campaign: writers, a fault, a reader of the feed, a projection, and the check at the end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import DatabaseFailure, MetadataStore
from tests.support.backends import Backend
from tests.support.processes import ROOT
from tests.support.rebuilding import TRACE, applied_in_order, trace
from tests.torture.checks import summary, violations
from tests.torture.faults import FAULTS, Fault, Workers
from tests.torture.journal import History, read
from tests.torture.worker import Spec

PROCESSES = 3
SESSIONS = 8
SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """What came of a campaign.

    Attributes:
        violations: Each promise that was broken; none if all is well.
        history: What the writers wrote down.
    """

    violations: Sequence[str]
    history: History

    @property
    def summary(self) -> str:
        """How many writes ended in which way."""
        return summary(self.history)


@dataclass
class Crew(Workers):
    """The processes that write, and how to start one.

    Attributes:
        url: The database, as they reach it.
        journal: Where they write down what they do.
        fault: Changes what they do.
        folder: Where their errors go.
    """

    url: str
    journal: Path
    fault: Fault
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    started: int = 0

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more."""
        self.started += 1
        choose = self.fault.choose
        spec: Spec = {
            "url": self.url,
            "journal": str(self.journal),
            "seed": choose.getrandbits(32),
            "name": f"w{self.started}",
            "sessions": SESSIONS,
            "cancels": 0.0,
            "upstream": 0.0,
            "forks": False,
            "clock": 0.0,
            "connect": [],
        }
        self.fault.prepare_worker(spec)
        with (self.folder / f"errors-{self.started}").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.torture.worker", json.dumps(spec)],
                cwd=ROOT,
                stderr=errors,
                start_new_session=True,
            )

    def replace_one(self) -> None:
        n = self.fault.choose.randrange(len(self.running))
        self._end(self.running[n])
        self.running[n] = self.start()

    def end(self) -> list[str]:
        """Kill all. Return what those printed that had ended by themselves."""
        early = [process for process in self.running if process.poll() is not None]
        for process in self.running:
            self._end(process)
        texts = [path.read_text(errors="replace") for path in sorted(self.folder.glob("errors-*"))]
        return [f"{len(early)} workers ended early: {'; '.join(texts)}"] if early else []

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """Kill it, with those that it forked, who would write on when the journal is read."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def run(backend: Backend, name: str, seed: str, seconds: float, folder: Path) -> Result:
    """Let a fault strike for ``seconds`` while several processes write, and check everything.

    Args:
        backend: Where.
        name: Which of `FAULTS`.
        seed: Of every choice; what processes and servers make of it varies.
        seconds: How long.
        folder: An empty folder for the journal and for what writers print.
    """
    async with backend.database() as url:
        engine = create_async_engine(url, poolclass=NullPool)
        store = MetadataStore(create_async_engine(url))
        store.register(trace())
        await store.create_tables()
        fault = FAULTS[name](backend.name, engine, random.Random(seed))
        following = Following(store)
        tasks = [asyncio.create_task(each) for each in (following.feed(), following.project())]
        try:
            async with fault.reached_by(url) as reached:
                crew = Crew(reached, folder / "journal", fault, folder)
                ended_early = await _strike(crew, seconds)
            await fault.end()
            history = read(crew.journal)
            await _settle(store, following)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        applied = await applied_in_order(store)
        found = await violations(store, history, following.fed, applied)
        parked = await store.parked_streams(TRACE)
        found += [*ended_early, *fault.further_violations(history)]
        found += [f"parked: {each}" for each in parked]
        await store.close()
        await store.engine.dispose()
        await engine.dispose()
        return Result(found, history)


async def _strike(crew: Crew, seconds: float) -> list[str]:
    crew.journal.touch()
    crew.running = [crew.start() for _ in range(PROCESSES)]
    try:
        while crew.journal.stat().st_size < 10_000:  # until they are all imported and at work
            await asyncio.sleep(0.05)
            assert any(process.poll() is None for process in crew.running), crew.end()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await crew.fault.strike(crew)
    finally:
        ended_early = crew.end()
    return ended_early


@dataclass
class Following:
    """Those who read the log while it grows.

    Attributes:
        store: The database.
        fed: The positions that the feed has given.
    """

    store: MetadataStore
    fed: list[int] = field(default_factory=list[int])

    async def feed(self) -> None:
        """Read the feed, over and over."""
        while True:
            after = self.fed[-1] if self.fed else 0
            with suppress(DatabaseFailure):
                async for event in self.store.events(after=after):
                    self.fed.append(event.position)
            await asyncio.sleep(0.01)

    async def project(self) -> None:
        """Keep the projection up to date."""
        await self.store.projector(batch_size=50, max_poll=0.05).run()


async def _settle(store: MetadataStore, following: Following) -> None:
    """Wait until the server has ended what the dead had begun, and all is read and applied."""
    async with asyncio.timeout(SETTLE_SECONDS):
        last = -1
        while (horizon := await store.horizon()) != last:
            last = horizon
            await store.wait_for(horizon, TRACE, timeout=SETTLE_SECONDS)
            events = [event.position async for event in store.events()]
            while events and (not following.fed or following.fed[-1] < events[-1]):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
