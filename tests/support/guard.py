"""Runs a temporary server for as long as the process that asked for it lives.

``python guard.py SPEC``, where SPEC is the JSON of a :class:`Spec`. The guard sets the server up,
runs it, and waits for a byte or the end of file on its standard input. Then it stops the server and
removes the directory. The kernel closes that pipe however the asking process ends, so that neither
Ctrl-C nor SIGKILL leaves a server behind. The standard library only: this file runs as a script.
"""

from __future__ import annotations

import json
import pwd
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypedDict

STOP_TIMEOUT = 20.0
POLL = 0.2


class Spec(TypedDict):
    """What to run, and where."""

    directory: str
    """Everything that the server writes; removed at the end."""
    user: str | None
    """Whom to run as; None means the user that we are."""
    prepare: list[list[str]]
    """Commands that make the data directory."""
    serve: list[str]
    """The server, staying in the foreground."""
    stop_signal: int
    """The signal that stops the server in an orderly way."""


def identity(user: str | None) -> dict[str, Any]:
    """The arguments of Popen that make a child run as this user, without further groups."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def guard(spec: Spec) -> None:
    """Set up and run the server until our own input says stop, or the server ends by itself."""
    directory = Path(spec["directory"])
    with (directory / "log").open("wb") as log:
        child_options: dict[str, Any] = {
            "cwd": directory,
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": subprocess.STDOUT,
            **identity(spec["user"]),
        }
        for command in spec["prepare"]:
            subprocess.run(command, check=True, **child_options)
        with subprocess.Popen(spec["serve"], **child_options) as server:
            try:
                (directory / "pid").write_text(str(server.pid))
                while server.poll() is None and not select.select([sys.stdin], [], [], POLL)[0]:
                    pass
                if server.returncode is not None:
                    raise subprocess.CalledProcessError(server.returncode, spec["serve"])
            finally:
                stop(server, spec["stop_signal"])


def stop(server: subprocess.Popen[Any], stop_signal: int) -> None:
    """Stop the server in an orderly way, or else kill it."""
    server.send_signal(stop_signal)
    try:
        server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()


def end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(1)


def main() -> None:
    spec: Spec = json.loads(sys.argv[1])
    log = Path(spec["directory"]) / "log"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    try:
        guard(spec)
    except (OSError, subprocess.SubprocessError) as error:
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        sys.exit(f"{error}\n{tail}")
    finally:
        shutil.rmtree(spec["directory"], ignore_errors=True)


if __name__ == "__main__":
    main()
