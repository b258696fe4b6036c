"""What is drawn: lines of points, taken from the results of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.report import variant
from benchmarks.results import PER_SECOND, PERCENTILES, Case, Result

CALLERS = "callers"
STORED = "sessions stored"
PERCENT = "percent of the calls"


@dataclass
class Panel:
    """A diagram.

    Attributes:
        title: What is measured.
        x: What its x axis says.
        y: What its y axis says.
        lines: By peer: for each point x, y, and the lowest and the highest y.
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float, float, float]]] = field(
        default_factory=dict[str, list[tuple[float, float, float, float]]]
    )


def throughput(results: Sequence[Result]) -> list[Panel]:
    """Throughput by callers."""
    return _by(results, CALLERS, lambda case: case.callers, lambda case: replace(case, callers=1))


def growth(results: Sequence[Result]) -> list[Panel]:
    """Throughput by the number of sessions stored."""
    return _by(results, STORED, lambda case: case.stored, lambda case: replace(case, stored=0))


def _by(
    results: Sequence[Result],
    axis: str,
    x: Callable[[Case], float],
    rest: Callable[[Case], Case],
) -> list[Panel]:
    """A panel for all cases that differ in ``x`` alone, if there are two or more."""
    groups: dict[Case, list[Result]] = {}
    for result in results:
        if result.unit.endswith(PER_SECOND):
            groups.setdefault(rest(result.case), []).append(result)
    panels = []
    for case, group in groups.items():
        if len(group) > 1:
            panel = Panel(_title(case, axis), axis, group[0].unit)
            for result in sorted(group, key=lambda each: x(each.case)):
                for peer in result.values:
                    value = result.value(peer)
                    point = (x(result.case), value.median, value.low, value.high)
                    panel.lines.setdefault(peer, []).append(point)
            panels.append(panel)
    return panels


def _title(case: Case, axis: str) -> str:
    """The scenario, and what all of its points have in common."""
    common = variant(case).partition(", ")[2] if axis == CALLERS else variant(case)
    return f"{case.scenario}: {common}" if common else case.scenario


def latency(results: Sequence[Result]) -> list[Panel]:
    """How long calls take: what share of them takes at most so long, with the least stored."""
    panels = []
    least = min((result.case.stored for result in results if result.latencies), default=0)
    for result in results:
        if result.latencies and result.case.stored == least:
            title = f"{result.case.scenario}: {variant(result.case)}"
            panel = Panel(title, PERCENT, "milliseconds")
            for peer, values in result.latencies.items():
                if values:
                    panel.lines[peer] = [
                        (percent, value, value, value)
                        for percent, value in zip(PERCENTILES, values, strict=True)
                    ]
            panels.append(panel)
    return panels
