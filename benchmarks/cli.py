"""The command line: ``run``, ``compare``, ``plot``, ``log`` and ``growth``."""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from benchmarks import comparison, growth, plots, results, session, whole_log
from benchmarks.backends import BACKENDS
from benchmarks.peers import PEERS, Missing
from benchmarks.runner import SIZES
from benchmarks.scenarios import SCENARIOS
from benchmarks.slow_disk import MOST_MS
from tests.support.servers import Unavailable

CALLERS = (1, 16, 64, 256)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; its exit status, which is not 0 if something was missing or differs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal need not know every character
    given = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Console], int] = given.command
    console = Console()
    try:
        return command(given, console)
    except KeyboardInterrupt:
        return _failed("Broken off.", console)
    except (Missing, Unavailable, results.Unreadable, OSError) as error:
        return _failed(str(error), console)


def _failed(problem: str, console: Console) -> int:
    console.print(problem, style="bold red", highlight=False, markup=False)
    return 1


def _run(given: argparse.Namespace, console: Console) -> int:
    plan = session.Plan(
        backends=given.backend or BACKENDS,
        peers=given.peer or list(PEERS),
        scenarios=given.scenario or list(SCENARIOS),
        callers=given.callers,
        processes=given.processes,
        fsync_ms=given.fsync_ms,
        stored=given.stored,
        size=given.size,
    )
    found = asyncio.run(session.run(plan, console))
    if given.json:
        results.save(found, given.json)
    return 1 if found.problems else 0


def _compare(given: argparse.Namespace, console: Console) -> int:
    a, b = results.load(given.a), results.load(given.b)
    for line in comparison.differences(a, b):
        console.print(f"Not the same: {line}", style="yellow", highlight=False, markup=False)
    changes = comparison.changes(a, b)
    if not changes:
        return _failed("There is nothing that both have measured.", console)
    console.print(comparison.table(changes), highlight=False, markup=False)
    different = comparison.different_work(a, b)
    for line in different:
        console.print(
            f"DIFFERENT DATA was read back: {line}", style="bold red", highlight=False, markup=False
        )
    return 1 if different else 0


def _plot(given: argparse.Namespace, console: Console) -> int:
    written = plots.draw(results.load(given.results), given.out)
    if not written:
        return _failed(
            "There is nothing to draw: run scenarios of calls, with several numbers of callers or "
            "of sessions stored for lines.",
            console,
        )
    for file in written:
        console.print(str(file), highlight=False, markup=False)
    return 0


def _log(given: argparse.Namespace, console: Console) -> int:
    status = 0
    for backend in dict.fromkeys(given.backend or BACKENDS):
        try:
            asyncio.run(whole_log.measure(backend, given.events, console))
        except Unavailable as error:
            status = _failed(f"No {backend}: {error}", console)
    return status


def parser() -> argparse.ArgumentParser:
    """The command line; its help names each option and what it may be."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="measure, and print what was found")
    run.set_defaults(command=_run)
    for option, choices in (("backend", BACKENDS), ("peer", PEERS), ("scenario", SCENARIOS)):
        run.add_argument(
            f"--{option}", action="append", choices=list(choices), help="repeatable; all if none"
        )
    for option, least, default, meaning in (
        ("callers", 1, CALLERS, "how many call at the same time in each process"),
        ("processes", 1, (1,), "how many processes, all on one database"),
        ("stored", 0, (0,), "how many sessions there are besides"),
    ):
        run.add_argument(
            f"--{option}",
            type=_numbers(int, least),
            default=default,
            metavar="N,N,…",
            help=f"{meaning} ({','.join(map(str, default))})",
        )
    run.add_argument(
        "--fsync-ms",
        type=_numbers(float, 0, MOST_MS),
        default=(0.0,),
        metavar="X,X,…",
        help=f"milliseconds that a commit is made to take longer, up to {MOST_MS} (0)",
    )
    run.add_argument("--size", choices=list(SIZES), default="full", help="how much (full)")
    run.add_argument("--json", type=_writable, metavar="FILE", help="store the results as well")

    compare = commands.add_parser("compare", help="two stored runs side by side")
    compare.set_defaults(command=_compare)
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)

    plot = commands.add_parser("plot", help="draw a stored run as SVG and PNG")
    plot.set_defaults(command=_plot)
    plot.add_argument("results", type=Path)
    plot.add_argument("--out", type=Path, default=Path(), help="the folder (this one)")

    log = commands.add_parser("log", help="rebuild, catch up and export a whole log")
    log.set_defaults(command=_log)
    log.add_argument("--backend", action="append", choices=list(BACKENDS), help="repeatable")
    log.add_argument(
        "--events", type=_number(int, 1), default=100_000, metavar="N", help="how many (100,000)"
    )

    growth.add_parser(commands)
    return made


def _numbers(
    kind: Callable[[str], float], least: int, most: float = math.inf
) -> Callable[[str], list[float]]:
    """Numbers such as ``1,16,64``."""
    number = _number(kind, least, most)
    return lambda text: [number(part) for part in text.split(",")]


def _number(
    kind: Callable[[str], float], least: int, most: float = math.inf
) -> Callable[[str], float]:
    """One number from ``least`` up to ``most``."""

    def number(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and least <= value <= most:
                return value
        end = "" if math.isinf(most) else f" up to {most:g}"
        whole = "whole numbers" if kind is int else "numbers"
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: give {whole} from {least}{end}")

    return number


def _writable(text: str) -> Path:
    """A file that can be written, as the results are known only at the end."""
    file = Path(text)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: name a file in a folder")
    return file
