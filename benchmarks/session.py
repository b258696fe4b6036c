"""One run: every case that was asked for, on every backend that there is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import report
from benchmarks.backends import Place, opened
from benchmarks.peers import PEERS, Peer, installed, offers
from benchmarks.results import Case, Result, Run, machine, versions
from benchmarks.runner import SIZES, measure
from benchmarks.scenarios import SCENARIOS, Probe
from eventmeta.core.settle import run_to_completion
from tests.support.servers import Unavailable


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    backends: Sequence[str]
    peers: Sequence[str]
    scenarios: Sequence[str]
    callers: Sequence[int] = (1,)
    processes: Sequence[int] = (1,)
    fsync_ms: Sequence[float] = (0.0,)
    stored: Sequence[int] = (0,)
    size: str = "full"

    def cases(self, backend: str) -> Iterator[Case]:
        """All combinations; what a fresh process is asked depends on none of them."""
        for name in self.scenarios:
            scenario = SCENARIOS[name]
            if isinstance(scenario, Probe):
                yield Case(backend, name)
                continue
            most = scenario.most_callers or max(self.callers)
            every_callers = dict.fromkeys(min(callers, most) for callers in self.callers)
            for stored, fsync_ms, processes, callers in itertools.product(
                self.stored, self.fsync_ms, self.processes, every_callers
            ):
                yield Case(backend, name, callers, processes, fsync_ms, stored)


async def run(plan: Plan, console: Console) -> Run:
    """Measure everything, and print what was found backend by backend.

    If it is broken off, what was found until then is what comes back.
    """
    size = SIZES[plan.size]
    made = Run(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=dict(versions()),
        settings={
            "size": plan.size,
            "rounds": str(size.rounds),
            "seconds per turn": f"{size.seconds:g}",
        },
    )
    try:
        for backend in dict.fromkeys(plan.backends):
            console.rule(backend)
            try:
                async with opened(backend) as place:
                    await _Backend(plan, backend, place, made, console).run()
            except Unavailable as error:
                _problem(f"No {backend}: {error}", made, console)
    except asyncio.CancelledError:  # by Ctrl-C
        _problem("Broken off: the rest was not measured", made, console)
    return made


@dataclass
class _Backend:
    """The part of a run that is on one backend."""

    plan: Plan
    backend: str
    place: Place
    made: Run
    console: Console

    async def run(self) -> None:
        classes, missing = installed(self.backend, self.plan.peers)
        name, _, version = self.place.server.partition(" ")
        self.made.versions[name] = version
        for absent in missing:
            _problem(str(absent), self.made, self.console)
        for line in report.environment(self.made):
            self.console.print(line, highlight=False, markup=False)
        self.made.durability[self.backend] = await self._durability(classes)
        if classes:
            line = report.durability(self.made.durability[self.backend])
            self.console.print(line, highlight=False, markup=False)
        found: list[Result] = []
        try:
            await self._measure(classes, found)
        finally:
            self.made.results += found
            for part in report.results(found):
                self.console.print(part, highlight=False, markup=False)

    async def _durability(self, classes: Mapping[str, type[Peer]]) -> dict[str, str]:
        found = {}
        async with self.place.databases(len(classes), 0) as urls:
            for (name, peer), url in zip(classes.items(), urls, strict=True):
                opened_peer = await peer.open(url)
                found[name] = await opened_peer.durability()
                await run_to_completion(opened_peer.close())  # also if it is broken off by now
        return found

    async def _measure(self, classes: Mapping[str, type[Peer]], found: list[Result]) -> None:
        """Every case; what is found is added one by one."""
        size = SIZES[self.plan.size]
        cases = {case: self._peers(case, classes) for case in self.plan.cases(self.backend)}
        for scenario in dict.fromkeys(case.scenario for case, peers in cases.items() if not peers):
            problem = f"{self.backend}: none of those chosen has what {scenario} needs"
            _problem(problem, self.made, self.console)
        total = sum(len(peers) for peers in cases.values()) * (size.rounds + 1)
        with _progress(self.console) as bar:
            task = bar.add_task("", total=total)
            for case, peers in cases.items():

                def step(what: str, case: Case = case) -> None:
                    text = f"{case.scenario}, {report.variant(case)}: {what}"
                    bar.update(task, description=text, advance=1)

                if peers:
                    try:
                        async with self.place.databases(len(peers), case.fsync_ms) as urls:
                            placed = dict(zip(peers, urls, strict=True))
                            found.append(await measure(case, placed, size, step))
                    except Exception as error:
                        what = f"{self.backend}: {case.scenario}, {report.variant(case)}"
                        _problem(f"{what}: {error!r}", self.made, self.console)

    def _peers(self, case: Case, classes: Mapping[str, type[Peer]]) -> list[str]:
        """Those who have what the scenario needs."""
        scenario = SCENARIOS[case.scenario]
        if isinstance(scenario, Probe):
            present = [
                name for name in self.plan.peers if name in classes or not PEERS[name].classes
            ]
            return [name for name in present if scenario.supports(name, self.backend)]
        return [name for name, peer in classes.items() if offers(peer, scenario.needs)]


def _problem(what: str, made: Run, console: Console) -> None:
    """What is left is worth having nevertheless; the exit status tells."""
    made.problems.append(what)
    console.print(what, style="bold red", highlight=False, markup=False)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console, transient=True)
