"""The results of a run, and all that one has to know to judge them, as data and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

from pydantic import TypeAdapter
from pydantic_core import from_json

from benchmarks.peers import OURS

FORMAT = 1
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
PER_SECOND = "/s"
PACKAGES = (
    "eventmeta",
    "openai-agents",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "psycopg",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "google-adk",
    "eventsourcing",
)


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


@dataclass(frozen=True)
class Case:
    """What is measured, and how.

    Attributes:
        backend: Where.
        scenario: The name of the scenario.
        callers: How many call at the same time in each process, each on a session of its own.
        processes: How many processes, all on one database.
        fsync_ms: How much longer a commit is made to take.
        stored: How many sessions there are besides.
    """

    backend: str
    scenario: str
    callers: int = 1
    processes: int = 1
    fsync_ms: float = 0
    stored: int = 0


@dataclass
class Result:
    """One case.

    Attributes:
        case: Which.
        unit: Of the values; what is per second is the better the higher, all else the lower.
        values: By peer, a value for each round.
        latencies: By peer, `PERCENTILES` of the milliseconds that a call took.
        failures: Calls by peer that raised an error and were repeated.
        errors: By peer, one of these errors.
        hash: Of the data that every peer read back after the same calls.
    """

    case: Case
    unit: str = "calls/s"
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    latencies: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    failures: dict[str, int] = field(default_factory=dict[str, int])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    hash: str = ""

    @property
    def base(self) -> str:
        """Whom the others are compared with."""
        return OURS if OURS in self.values else next(iter(self.values))

    def value(self, peer: str) -> Spread:
        return Spread.of(self.values[peer])

    def ratio(self, peer: str, to: str) -> Spread:
        """How many times as good ``peer`` is as ``to``, round by round."""
        pairs = zip(self.values[peer], self.values[to], strict=True)
        if self.unit.endswith(PER_SECOND):
            return Spread.of(divided(a, b) for a, b in pairs)
        return Spread.of(divided(b, a) for a, b in pairs)


def divided(a: float, b: float) -> float:
    return a / b if b else float("inf")


def percentiles(seconds: list[float]) -> list[float]:
    """`PERCENTILES` of them, in milliseconds."""
    if len(seconds) < 2:
        return [value * 1000 for value in seconds * len(PERCENTILES)]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return [cuts[percent - 1] * 1000 for percent in PERCENTILES]


@dataclass
class Run:
    """All results of one run.

    Attributes:
        started: When, in UTC.
        machine: What it ran on.
        versions: Of the interpreter, the packages and the database servers.
        settings: How much was measured.
        durability: By backend and peer, as the database itself says.
        problems: What could not be measured, and why: peers that are not installed, for example.
        results: What was found.
        format: Of this file.
    """

    started: str
    machine: str
    versions: dict[str, str]
    settings: dict[str, str]
    durability: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    problems: list[str] = field(default_factory=list[str])
    results: list[Result] = field(default_factory=list[Result])
    format: int = FORMAT


_RUN = TypeAdapter(Run)


def save(run: Run, file: Path) -> None:
    file.write_bytes(_RUN.dump_json(run, indent=1) + b"\n")


class Unreadable(Exception):
    """A file does not hold the results of a run."""


def load(file: Path) -> Run:
    """What `save` has written.

    Raises:
        Unreadable: It cannot be read, or is not of this format.
    """
    try:
        found = from_json(file.read_bytes())
        if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
            raise Unreadable(
                f"{file} has format {found['format']}; this program reads format {FORMAT}"
            )
        return _RUN.validate_python(found)
    except OSError as error:
        raise Unreadable(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        problem = str(error).splitlines()[0]
        raise Unreadable(f"{file} is not what `run --json` has stored: {problem}") from error


def machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}"


def versions() -> Mapping[str, str]:
    """Of what is installed here."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
