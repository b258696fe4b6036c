"""Two runs side by side: what changed, and whether they can be compared at all."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from benchmarks.report import shown, variant
from benchmarks.results import PER_SECOND, Case, Result, Run, Spread, divided


@dataclass(frozen=True)
class Change:
    """One peer in one case, before and after.

    Attributes:
        case: Which case.
        peer: Which peer.
        before: Its values in the first run.
        after: Its values in the second.
        factor: How many times as good the median has become.
    """

    case: Case
    peer: str
    before: Spread
    after: Spread
    factor: float

    @property
    def verdict(self) -> str:
        """Whether there is a change that is larger than the differences between rounds."""
        if self.before.low <= self.after.high and self.after.low <= self.before.high:
            return "within the spread"
        return "better" if self.factor > 1 else "WORSE"


def changes(a: Run, b: Run) -> list[Change]:
    """Of every peer in every case that both have."""
    old = {result.case: result for result in a.results}
    return [
        _change(old[new.case], new, peer)
        for new in b.results
        if new.case in old
        for peer in new.values
        if peer in old[new.case].values
    ]


def _change(old: Result, new: Result, peer: str) -> Change:
    before, after = old.value(peer), new.value(peer)
    good = (after.median, before.median)
    factor = divided(*good) if new.unit.endswith(PER_SECOND) else divided(*reversed(good))
    return Change(new.case, peer, before, after, factor)


def different_work(a: Run, b: Run) -> list[str]:
    """The cases in which the two read back different data, so that times mean nothing."""
    old = {result.case: result for result in a.results}
    return [
        f"{new.case.scenario} on {new.case.backend}, {variant(new.case)}"
        for new in b.results
        if new.case in old and old[new.case].hash != new.hash
    ]


def differences(a: Run, b: Run) -> list[str]:
    """What is not the same around the two runs."""
    found = [f"machine: {a.machine} | {b.machine}"] if a.machine != b.machine else []
    for what, old, new in (
        ("version of", a.versions, b.versions),
        ("setting", a.settings, b.settings),
        ("durability on", a.durability, b.durability),
    ):
        found += [
            f"{what} {name}: {old.get(name)} | {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return found


def table(found: list[Change]) -> Table:
    made = Table(title="Before and after", title_justify="left")
    for heading in ("case", "peer", "before", "after", "times as good", ""):
        made.add_column(heading, justify="left" if heading in ("case", "peer", "") else "right")
    for change in found:
        made.add_row(
            f"{change.case.backend}: {change.case.scenario}, {variant(change.case)}",
            change.peer,
            shown(change.before, ",.1f"),
            shown(change.after, ",.1f"),
            f"{change.factor:.2f}",
            change.verdict,
        )
    return made
