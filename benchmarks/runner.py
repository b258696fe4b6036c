"""Measuring: the peers take turns, round after round, in one process."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from benchmarks.peers import Peer
from benchmarks.scenarios import Scenario, WrongData


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, and seconds for each turn of a peer."""

    rounds: int
    seconds: float


SIZES = {"small": Size(rounds=2, seconds=0.05), "full": Size(rounds=5, seconds=0.5)}


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest of its values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(median(found), min(found), max(found))


@dataclass
class Result:
    """One scenario with one number of callers.

    Attributes:
        scenario: Its name.
        callers: How many call at the same time, each on a session of its own.
        rates: Calls per second by peer, a value for each round.
        failures: Calls by peer that raised an error and were repeated.
    """

    scenario: str
    callers: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def rate(self, peer: str) -> Spread:
        return Spread.of(self.rates[peer])

    def ratio(self, peer: str, to: str) -> Spread:
        """How many times as fast ``peer`` is as ``to``, round by round."""
        return Spread.of(a / b for a, b in zip(self.rates[peer], self.rates[to], strict=True))


@dataclass
class _Caller:
    """One of those who call at the same time; goes on counting from round to round."""

    peer: Peer
    scenario: Scenario
    session_id: str
    calls: int = 0
    failures: int = 0

    async def call(self) -> None:
        """The next call; one that fails is repeated in the next turn."""
        try:
            await self.scenario.call(self.peer, self.session_id, self.calls)
        except WrongData:
            raise
        except Exception:
            self.failures += 1
        else:
            self.calls += 1

    async def call_until(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            await self.call()


async def _turn(callers: list[_Caller], seconds: float) -> float:
    """Calls per second, after an untimed call by each."""
    await asyncio.gather(*(caller.call() for caller in callers))
    before = sum(caller.calls for caller in callers)
    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*(caller.call_until(start + seconds) for caller in callers))
    elapsed = time.perf_counter() - start
    return (sum(caller.calls for caller in callers) - before) / elapsed


async def measure(
    peers: Mapping[str, Peer],
    scenario: Scenario,
    callers: int,
    size: Size,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run one scenario; each peer's data is compared with what was written after each turn.

    Raises:
        WrongData: A peer read something else than was written.
    """
    result = Result(scenario.name, callers)
    everyone = {
        name: [_Caller(peer, scenario, f"{scenario.name}-{callers}-{i}") for i in range(callers)]
        for name, peer in peers.items()
    }
    for group in everyone.values():
        for caller in group:
            await scenario.prepare(caller.peer, caller.session_id)
    for _ in range(size.rounds):
        for name, group in everyone.items():
            progress(name)
            result.rates.setdefault(name, []).append(await _turn(group, size.seconds))
            for caller in group:
                if caller.calls:
                    await scenario.check(caller.peer, caller.session_id, caller.calls)
    for name, group in everyone.items():
        result.failures[name] = sum(caller.failures for caller in group)
    return result
