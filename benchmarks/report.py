"""The results, and all that one has to know to judge them, as text."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.console import Group, RenderableType
from rich.table import Table

from benchmarks.peers import OURS
from benchmarks.runner import Result, Size, Spread

PACKAGES = ("eventmeta", "openai-agents", "sqlalchemy", "aiosqlite", "asyncpg")


def environment(server: str) -> list[str]:
    """The machine, the versions and the database server."""
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [
        f"Machine: {os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        f"Python {platform.python_version()}, {', '.join(packages)}",
        f"Database: {server}",
    ]


def durability(settings: dict[str, str]) -> str:
    """One line if all peers have the same settings; else one that nobody overlooks."""
    if len(set(settings.values())) == 1:
        return f"Durability, the same for all: {next(iter(settings.values()))}"
    return "UNEQUAL DURABILITY: " + "; ".join(f"{k}: {v}" for k, v in settings.items())


def results(found: Sequence[Result], size: Size) -> RenderableType:
    """A table of rates, a table of ratios, and the calls that failed."""
    peers = list(found[0].rates)
    rates = Table(title="Calls per second", title_justify="left")
    ratios = Table(title=f"{OURS}, times as fast as", title_justify="left")
    for table in (rates, ratios):
        table.add_column("scenario")
        table.add_column("callers", justify="right")
    for peer in peers:
        rates.add_column(peer, justify="right")
        if peer != OURS:
            ratios.add_column(peer, justify="right")
    for result in found:
        row = [result.scenario, str(result.callers)]
        rates.add_row(*row, *(_shown(result.rate(peer), ",.0f") for peer in peers))
        others = (peer for peer in peers if peer != OURS)
        ratios.add_row(*row, *(_shown(result.ratio(OURS, peer), ".2f") for peer in others))
    note = (
        f"Medians (lowest–highest) of {size.rounds} rounds, {size.seconds:g} s each, in turns; "
        "all data was read back and compared."
    )
    return Group(rates, ratios, note, *_failures(found))


def _failures(found: Sequence[Result]) -> list[str]:
    return [
        f"{count} calls of {peer} failed and were repeated: {result.scenario}, "
        f"{result.callers} callers"
        for result in found
        for peer, count in result.failures.items()
        if count
    ]


def _shown(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}}–{spread.high:{form}})"
