"""Measuring one case: the peers take turns, round after round."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crew import Team
from benchmarks.processes import Crews, Job, crew
from benchmarks.results import Case, Result, percentiles
from benchmarks.scenarios import SCENARIOS, Probe, Scenario, WrongData
from benchmarks.slow_disk import slow_sqlite

ROOT = Path(__file__).parents[1]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: How many turns each peer has.
        seconds: How long a turn is.
        sessions: How many are held open where memory is measured.
        supply: For how many calls of a turn there is something to use up, where calls do that.
    """

    rounds: int
    seconds: float
    sessions: int
    supply: int


SIZES = {
    "small": Size(rounds=2, seconds=0.05, sessions=100, supply=60),
    "full": Size(rounds=5, seconds=0.5, sessions=1000, supply=600),
}


async def measure(case: Case, urls: Mapping[str, str], size: Size, progress: Progress) -> Result:
    """Run one case with the peers of ``urls``, each on the database there.

    Raises:
        WrongData: A peer read something else than was written.
    """
    scenario = SCENARIOS[case.scenario]
    if isinstance(scenario, Probe):
        return await _probe(case, scenario, urls, size, progress)
    teams: dict[str, Team] = {}
    with slow_sqlite(case.fsync_ms):
        async with AsyncExitStack() as stack:
            for peer, url in urls.items():
                progress(f"{peer} prepares")
                teams[peer] = await _team(case, peer, url, size.supply)
                stack.push_async_callback(teams[peer].close)
                await teams[peer].prepare(case.stored)
            return await take_turns(case, scenario, teams, size, progress)


async def _team(case: Case, peer: str, url: str, supply: int) -> Team:
    jobs = [
        Job(
            peer,
            case.backend,
            url,
            case.scenario,
            [f"{case.scenario}-{process}-{caller}" for caller in range(case.callers)],
            case.fsync_ms,
            max(5, supply // case.callers),
        )
        for process in range(case.processes)
    ]
    return await Crews.start(jobs) if len(jobs) > 1 else await crew(jobs[0])


async def take_turns(
    case: Case, scenario: Scenario, teams: Mapping[str, Team], size: Size, progress: Progress
) -> Result:
    """Measure teams that are ready; each one's data is checked after each of its turns."""
    result = Result(case, scenario.unit)
    seconds: dict[str, list[float]] = {peer: [] for peer in teams}
    for _ in range(size.rounds):
        for peer, team in teams.items():
            progress(peer)
            await team.warm_up()
            turn = await team.turn(size.seconds)
            await team.check()
            result.values.setdefault(peer, []).append(turn.rate)
            result.failures[peer] = result.failures.get(peer, 0) + turn.failures
            if turn.error:
                result.errors[peer] = turn.error
            seconds[peer] += turn.latencies
    result.latencies = {peer: percentiles(found) for peer, found in seconds.items()}
    hashes = {peer: await team.prove() for peer, team in teams.items()}
    result.hash = next(iter(hashes.values()))
    if set(hashes.values()) != {result.hash}:
        raise WrongData(f"the peers read back different data: {hashes}")
    return result


async def _probe(
    case: Case, probe: Probe, urls: Mapping[str, str], size: Size, progress: Progress
) -> Result:
    """The same with a fresh process for each value, after one that is not counted."""
    result = Result(case, probe.unit)
    for number in range(size.rounds + 1):
        for peer, url in urls.items():
            if number:
                progress(peer)
            value = await _printed(probe.arguments(peer, case.backend, url, size.sessions))
            if number:
                result.values.setdefault(peer, []).append(value)
    return result


async def _printed(arguments: list[str]) -> float:
    """The number that the interpreter prints."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=pipe, stderr=pipe
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{errors.decode()}")
    return float(output.split()[-1])
