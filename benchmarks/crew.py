"""Those who call: all callers of one peer in one process."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.peers import Peer
from benchmarks.scenarios.base import Scenario, WrongData, digest
from eventmeta.core.settle import run_to_completion

FEW_CALLS = 3
ERROR_LENGTH = 200


@dataclass
class Turn:
    """What was done in one turn.

    Attributes:
        units: How much that was.
        seconds: How long it took.
        latencies: Seconds that each call took.
        failures: Calls that raised an error and were repeated.
        error: One of those errors; empty if there was none.
    """

    units: int
    seconds: float
    latencies: list[float] = field(default_factory=list[float])
    failures: int = 0
    error: str = ""

    @property
    def rate(self) -> float:
        return self.units / self.seconds


class Team(Protocol):
    """All callers of one peer, in whichever processes they are."""

    async def prepare(self, stored: int) -> None:
        """Make all sessions ready, and so many that nobody calls."""
        ...

    async def warm_up(self) -> None:
        """Put back what was used up, and let each make a call that does not count."""
        ...

    async def turn(self, seconds: float) -> Turn:
        """Let all call at the same time, as soon as they are told to."""
        ...

    async def check(self) -> None:
        """Read back what there should be.

        Raises:
            WrongData: There is something else. (So do the calls themselves, if they read.)
        """
        ...

    async def prove(self) -> str:
        """A hash of what is read back after the same few calls for every peer and every run."""
        ...

    async def close(self) -> None: ...


@dataclass
class _Caller:
    """One of those who call; goes on counting from turn to turn."""

    peer: Peer
    scenario: Scenario
    session_id: str
    calls: int = 0
    supplied: int | None = None
    units: int = 0
    failures: int = 0
    error: str = ""
    latencies: list[float] = field(default_factory=list[float])

    async def begin(self, supply: int) -> None:
        """Get ready for a turn; what calls use up is there ``supply`` times, and never used up."""
        if self.scenario.supply:
            used = supply if self.supplied is None else self.calls
            await self.scenario.supply(self.peer, self.session_id, used)
            self.supplied, self.calls = supply - 1, 0
        self.failures, self.error = 0, ""
        await self.call()
        self.units, self.latencies = 0, []

    async def call(self) -> None:
        """The next call; one that fails is repeated in the next."""
        begun = time.perf_counter()
        try:
            self.units += await self.scenario.call(self.peer, self.session_id, self.calls)
        except WrongData:
            raise
        except Exception as error:
            self.failures += 1
            self.error = f"{type(error).__name__}: {error}".splitlines()[0][:ERROR_LENGTH]
        else:
            self.calls += 1
            self.latencies.append(time.perf_counter() - begun)

    async def call_until(self, deadline: float) -> None:
        while time.perf_counter() < deadline and self.calls != self.supplied:
            await self.call()

    async def check(self) -> None:
        if self.calls:
            await self.scenario.check(self.peer, self.session_id, self.calls)


class Crew:
    """The callers in this process, each on a session of its own."""

    def __init__(self, peer: Peer, scenario: Scenario, names: list[str], supply: int = 5) -> None:
        """Args: who calls what on which sessions, and for how many calls of a turn there is supply.

        The supply is that of each caller; it matters where calls use something up.
        """
        self._peer = peer
        self._scenario = scenario
        self._supply = supply
        self._callers = [_Caller(peer, scenario, name) for name in names]

    async def prepare(self, stored: int) -> None:
        for caller in self._callers:
            await self._scenario.prepare(self._peer, caller.session_id)
        for i in range(stored):
            await self._store(f"{self._scenario.name}-stored-{i}")

    async def _store(self, session_id: str) -> None:
        """Make a session of which a few calls are all that ever happens to it."""
        peer, scenario = self._peer, self._scenario
        await scenario.prepare(peer, session_id)
        if scenario.supply:
            await scenario.supply(peer, session_id, FEW_CALLS + 1)
        for n in range(FEW_CALLS):
            await scenario.call(peer, session_id, n)

    async def warm_up(self) -> None:
        await asyncio.gather(*(caller.begin(self._supply) for caller in self._callers))
        gc.collect(1)  # what the others have left; all there is would take longer than a turn

    async def turn(self, seconds: float) -> Turn:
        start = time.perf_counter()
        await asyncio.gather(*(caller.call_until(start + seconds) for caller in self._callers))
        return Turn(
            sum(caller.units for caller in self._callers),
            time.perf_counter() - start,
            [latency for caller in self._callers for latency in caller.latencies],
            sum(caller.failures for caller in self._callers),
            next((caller.error for caller in self._callers if caller.error), ""),
        )

    async def check(self) -> None:
        for caller in self._callers:
            await caller.check()

    async def prove(self) -> str:
        session_id = f"{self._scenario.name}-proof"
        await self._store(session_id)
        return digest(await self._scenario.check(self._peer, session_id, FEW_CALLS))

    async def close(self) -> None:
        await run_to_completion(self._peer.close())  # also if it is broken off by now
