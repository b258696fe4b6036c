"""How the time of every public call grows with what it has to do with.

Each call is timed at three sizes of its input, each ten times the one before, on databases that
began empty. What grows faster than n log n between the two larger ones is a fault, unless it does
not when it is measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.backends import OUR_BACKENDS, Place, opened
from benchmarks.growing import INPUTS, Input, register
from eventmeta import MetadataStore
from tests.support.servers import Unavailable

FACTOR = 10
SIZES = (1, FACTOR, FACTOR**2)

TOLERANCE = 2.5
"""How many times as long as n log n something may take, for no two measurements are the same."""

AGAIN = 2
"""How often what looks like a fault is measured again, at the most."""

LEAST_SECONDS = 0.15
"""What takes less at the largest size is not judged: it may be anything else that took the time."""


@dataclass(frozen=True)
class Growth:
    """How long a call took at each of the sizes."""

    sizes: Sequence[int]
    seconds: Sequence[float]

    def least(self, other: Growth) -> Growth:
        """Return the shorter of the times, as whatever else ran can only have made them longer."""
        return Growth(self.sizes, [*map(min, self.seconds, other.seconds)])

    @property
    def exponent(self) -> float:
        """The power of the size with which the time grew between the two largest."""
        if len(self.seconds) < 2:
            return math.nan
        return math.log(self.seconds[-1] / self.seconds[-2]) / math.log(self._factor)

    @property
    def is_fault(self) -> bool:
        """Whether it grew faster than n log n, beyond what chance explains."""
        if len(self.seconds) < 2 or self.seconds[-1] < LEAST_SECONDS:
            return False
        before, after = self.sizes[-2:]
        expected = self._factor * math.log(after) / math.log(max(before, 2))
        return self.seconds[-1] / self.seconds[-2] > TOLERANCE * expected

    @property
    def _factor(self) -> float:
        return self.sizes[-1] / self.sizes[-2]


async def measure(
    backend: str, names: Sequence[str], scale: float, console: Console
) -> dict[str, dict[str, Growth]]:
    """Measure the inputs of these ``names``, print what was found, and return it.

    Args:
        backend: The database.
        names: Of `INPUTS`.
        scale: By how much their sizes are multiplied.
        console: Where to print.

    Raises:
        tests.support.servers.Unavailable: The database cannot be had.
    """
    found: dict[str, dict[str, Growth]] = {}
    async with opened(backend) as place:
        console.rule(place.server)
        for name in names:
            found[name] = await _grown(place, INPUTS[name], scale)
            for _ in range(AGAIN):
                if any(growth.is_fault for growth in found[name].values()):
                    once_more = await _grown(place, INPUTS[name], scale)
                    found[name] = {
                        call: growth.least(once_more[call]) for call, growth in found[name].items()
                    }
            console.print(_table(name, found[name]), highlight=False)
    return found


def faults(found: Mapping[str, Mapping[str, Growth]]) -> list[str]:
    """Return what grew too fast, by the input and the call."""
    return [
        f"{name}: {call} grows with the power {growth.exponent:.2f}"
        for name, calls in found.items()
        for call, growth in calls.items()
        if growth.is_fault
    ]


async def _grown(place: Place, given: Input, scale: float) -> dict[str, Growth]:
    sizes = [max(int(given.base * scale * factor), 4) for factor in SIZES]
    seconds: dict[str, list[float]] = {call: [] for call in given.calls}
    for size in sizes:
        async with place.databases(1, 0.0) as (url,):
            store = MetadataStore.from_url(url, structured_metadata=True, max_value_bytes=2**24)
            async with store:
                register(store)
                await store.create_tables()
                for call, taken in (await _times(store, given, size)).items():
                    seconds[call].append(taken)
    return {call: Growth(sizes, taken) for call, taken in seconds.items()}


async def _times(store: MetadataStore, given: Input, size: int) -> dict[str, float]:
    """Return the seconds of each call; others may use the processor, so that is what is counted.

    The time is that of the clock: what the server does is part of it.
    """
    found: dict[str, float] = {}
    for name, call in given.calls.items():
        start = time.perf_counter()
        await call(store, size)
        found[name] = time.perf_counter() - start
        await asyncio.sleep(0)
    return found


def _table(name: str, calls: Mapping[str, Growth]) -> Table:
    sizes = next(iter(calls.values())).sizes
    shown = Table(title=name, title_justify="left")
    shown.add_column("call")
    for size in sizes:
        shown.add_column(f"{size:,}", justify="right")
    shown.add_column("power", justify="right")
    for call, growth in calls.items():
        power = f"{growth.exponent:.2f}" if growth.seconds[-1] >= LEAST_SECONDS else "–"
        style = "bold red" if growth.is_fault else None
        times = (f"{1000 * taken:,.1f} ms" for taken in growth.seconds)
        shown.add_row(call, *times, power, style=style)
    return shown


def add_parser(commands: Any) -> None:
    """Add the command ``growth``."""
    growing = commands.add_parser("growth", help="how the time of every call grows with its input")
    growing.set_defaults(command=_run)
    for option, names in (("backend", list(OUR_BACKENDS)), ("input", list(INPUTS))):
        growing.add_argument(
            f"--{option}", action="append", choices=names, help="repeatable; all if none"
        )
    growing.add_argument(
        "--scale",
        type=_scale,
        default=1.0,
        metavar="X",
        help="multiplies all sizes (1)",
    )


def _scale(text: str) -> float:
    scale = float(text)
    if not 0 < scale <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give a number up to 100")
    return scale


def _run(given: argparse.Namespace, console: Console) -> int:
    problems: list[str] = []
    for backend in dict.fromkeys(given.backend or OUR_BACKENDS):
        try:
            names = given.input or list(INPUTS)
            found = asyncio.run(measure(backend, names, given.scale, console))
        except Unavailable as error:
            problems.append(f"No {backend}: {error}")
        else:
            problems += (f"{backend}: {fault}" for fault in faults(found))
    for problem in problems:
        console.print(problem, style="bold red", highlight=False, markup=False)
    return 1 if problems else 0
