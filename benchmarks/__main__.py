"""``python -m benchmarks``: measure, and print what was found."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import report
from benchmarks.backends import BACKENDS, databases
from benchmarks.peers import peers_for
from benchmarks.runner import SIZES, Result, Size, measure
from benchmarks.scenarios import SCENARIOS
from tests.servers import Unavailable

CALLERS = (1, 16, 64)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    backends: Sequence[str]
    scenarios: Sequence[str]
    callers: Sequence[int]
    size: Size


def numbers(text: str) -> list[int]:
    """Numbers of callers, such as ``1,16,64``."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line; its help names each option and what it may be."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument(
        "--backend", action="append", choices=BACKENDS, help="repeatable; all if none"
    )
    made.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), help="repeatable; all if none"
    )
    made.add_argument(
        "--callers",
        type=numbers,
        default=CALLERS,
        metavar="N,N,…",
        help="how many call at the same time (1,16,64)",
    )
    made.add_argument("--size", choices=list(SIZES), default="full", help="how much (full)")
    return made


async def run(plan: Plan, backend: str, console: Console) -> list[Result]:
    """Measure on one backend, each peer in a database of its own, and print the results."""
    openers = peers_for(backend)
    total = len(plan.scenarios) * len(plan.callers) * plan.size.rounds * len(openers)
    found: list[Result] = []
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(databases(backend, len(openers)))
        peers = {}
        for (name, opener), url in zip(openers.items(), place.urls, strict=True):
            peers[name] = await opener(url)
            stack.push_async_callback(peers[name].close)
        console.rule(backend)
        for line in report.environment(place.server):
            console.print(line, highlight=False)
        settings = {name: await peer.durability() for name, peer in peers.items()}
        console.print(report.durability(settings), highlight=False)
        with _progress(console) as bar:
            task = bar.add_task("", total=total)
            for scenario in plan.scenarios:
                for callers in plan.callers:

                    def step(peer: str, what: str = f"{scenario}, {callers} callers") -> None:
                        bar.update(task, description=f"{what}: {peer}")
                        bar.advance(task)

                    case = SCENARIOS[scenario]
                    found.append(await measure(peers, case, callers, plan.size, step))
    console.print(report.results(found, plan.size), highlight=False)
    return found


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console, transient=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the number of backends that could not be had."""
    given = parser().parse_args(arguments)
    plan = Plan(
        given.backend or BACKENDS,
        given.scenario or list(SCENARIOS),
        given.callers,
        SIZES[given.size],
    )
    console = Console()
    missing = 0
    for backend in plan.backends:
        try:
            asyncio.run(run(plan, backend, console))
        except Unavailable as error:
            console.print(f"No {backend}: {error}", style="bold red")
            missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
