"""Python programs run as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 90

_PREAMBLE = """
import asyncio, sys

def ready():
    print("ready", flush=True)
    sys.stdin.readline()

"""


def run_python(
    *arguments: str,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter to its end, with ``arguments`` on its command line."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def race(code: str, *racers: tuple[str, ...]) -> list[str]:
    """What each of the processes prints, all of which run ``code`` at the same time.

    Each calls ``ready()`` when it has imported what it needs, and goes on when all have done so.
    """
    running = [_start(_PREAMBLE + code, arguments) for arguments in racers]
    try:
        for process in running:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in running:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=TIMEOUT) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    failures = [errors for process, (_, errors) in zip(running, ended, strict=True) if errors]
    assert not failures, "\n".join(failures)
    assert all(process.returncode == 0 for process in running)
    return [output for output, _ in ended]


def _start(code: str, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
