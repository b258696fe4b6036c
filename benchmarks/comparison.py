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
        _name(new.case) for new in b.results if new.case in old and old[new.case].hash != new.hash
    ]


def differences(a: Run, b: Run) -> list[str]:
    """What is not the same around the two runs."""
    found = [f"machine: {a.machine} | {b.machine}"] if a.machine != b.machine else []
    for what, old, new in (
        ("version of", a.versions, b.versions),
        ("setting", a.settings, b.settings),
    ):
        found += [
            f"{what} {name}: {old.get(name)} | {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    found += [
        f"durability of {peer} on {backend}: {setting} | {b.durability[backend][peer]}"
        for backend, settings in a.durability.items()
        for peer, setting in settings.items()
        if b.durability.get(backend, {}).get(peer, setting) != setting
    ]
    for which, one, other in (("first", a, b), ("second", b, a)):
        alone: dict[str, list[str]] = {}
        for peer, case in sorted(_measured(one) - _measured(other)):
            alone.setdefault(peer, []).append(case)
        for peer, cases in alone.items():
            more = f", and {len(cases) - 1} more" if len(cases) > 1 else ""
            found.append(f"only the {which} has {peer} in {cases[0]}{more}")
        found += [f"the {which} is not complete: {problem}" for problem in one.problems]
    return found


def _measured(run: Run) -> set[tuple[str, str]]:
    return {(peer, _name(result.case)) for result in run.results for peer in result.values}


def _name(case: Case) -> str:
    return f"{case.backend}: {case.scenario}, {variant(case)}"


def table(found: list[Change]) -> Table:
    made = Table(title="Before and after", title_justify="left")
    for heading in ("case", "peer", "before", "after", "factor", ""):
        is_text = heading in ("case", "peer", "")
        made.add_column(
            heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for change in found:
        made.add_row(
            _name(change.case),
            change.peer,
            shown(change.before, ",.1f"),
            shown(change.after, ",.1f"),
            f"{change.factor:.2f}",
            change.verdict,
        )
    return made
