"""A run as text: what was found, and all that one has to know to judge it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from benchmarks.peers import PEERS
from benchmarks.results import PER_SECOND, Case, Result, Run, Spread

NONE = "–"


def environment(run: Run) -> list[str]:
    """The machine, the versions and the settings."""
    listed = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    settings = ", ".join(f"{name}: {value}" for name, value in run.settings.items())
    return [f"Machine: {run.machine}", f"Versions: {listed}", f"Settings: {settings}"]


def durability(settings: Mapping[str, str]) -> str:
    """One line if all peers have the same settings; else one that nobody overlooks."""
    if len(set(settings.values())) == 1:
        return f"Durability, the same for all: {next(iter(settings.values()))}"
    return "UNEQUAL DURABILITY: " + "; ".join(f"{k}: {v}" for k, v in settings.items())


def results(found: Sequence[Result]) -> list[RenderableType]:
    """A table for each scenario, and the calls that failed."""
    peers = [
        peer
        for peer, entry in PEERS.items()
        if entry.classes and any(peer in r.values for r in found)
    ]
    tables: dict[tuple[str, ...], list[Result]] = {}
    for each in found:
        key = (each.case.backend, each.case.scenario, *setting(each.case))
        tables.setdefault(key, []).append(each)
    note = (
        "Medians, and lowest–highest, of rounds taken in turns. × is how many times as good the "
        "first one is, round by round."
    )
    if all(result.hash for result in found):
        note += " All data was read back and compared."
    parts = [part for each in tables.values() for part in (_title(each[0]), _scenario(each, peers))]
    return [*parts, note, *_failures(found)] if found else []


def _title(result: Result) -> str:
    what = ", ".join([result.case.scenario, result.unit, *setting(result.case)])
    return f"{result.case.backend}: {what}"


def _scenario(found: Sequence[Result], peers: Sequence[str]) -> Table:
    """A row for each peer, a column for each number of callers."""
    table = Table(show_lines=True)
    table.add_column("", overflow="fold")
    for result in found:
        table.add_column(callers(result.case), justify="right", no_wrap=True)
    others = [peer for result in found for peer in result.values if peer not in peers]
    for peer in dict.fromkeys([*peers, *others]):
        table.add_row(peer, *(_cell(result, peer) for result in found))
    return table


def _cell(result: Result, peer: str) -> str:
    if peer not in result.values:
        return NONE
    value = shown(result.value(peer), ",.0f" if result.unit.endswith(PER_SECOND) else ",.1f")
    if peer == result.base:
        return value
    return f"{value}\n× {shown(result.ratio(result.base, peer), '.2f')}"


def variant(case: Case) -> str:
    """What tells a case from others of its scenario."""
    return ", ".join([callers(case), *setting(case)])


def callers(case: Case) -> str:
    """How many there are in each process."""
    return f"{case.callers} caller{'s' if case.callers > 1 else ''}"


def setting(case: Case) -> list[str]:
    """What else tells a case from others of its scenario."""
    parts: list[str] = []
    if case.processes > 1:
        parts.append(f"in each of {case.processes} processes")
    if case.fsync_ms:
        parts.append(f"commits +{case.fsync_ms:g} ms")
    if case.stored:
        parts.append(f"{case.stored:,} sessions stored")
    return parts


def _failures(found: Iterable[Result]) -> list[str]:
    return [
        f"{count} calls of {peer} failed and were repeated: {result.case.scenario} on "
        f"{result.case.backend}, {variant(result.case)} ({result.errors.get(peer, '?')})"
        for result in found
        for peer, count in result.failures.items()
        if count
    ]


def shown(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}}\n{spread.low:{form}}–{spread.high:{form}}"
