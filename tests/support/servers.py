"""Real servers for tests and benchmarks: those that an environment variable names, or our own.

``with postgresql() as url:`` and ``with mariadb() as url:`` give the SQLAlchemy URL of a server on
which we may create databases. Without ``EVENTMETA_TEST_POSTGRES_URL`` and
``EVENTMETA_TEST_MYSQL_URL`` a server program of this machine is started on a temporary directory,
reachable through a Unix socket only, and stopped at the end of the block, or of this process,
however that ends: see :mod:`tests.support.guard`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tests.support import guard, programs
from tests.support.programs import UNPRIVILEGED, Launch, Unavailable

__all__ = ["MYSQL_VARIABLE", "POSTGRES_VARIABLE", "Unavailable", "mariadb", "postgresql", "standby"]

POSTGRES_VARIABLE = "EVENTMETA_TEST_POSTGRES_URL"
MYSQL_VARIABLE = "EVENTMETA_TEST_MYSQL_URL"

START_TIMEOUT = 60.0
MAX_PARENT = 60  # characters, as the path of a Unix socket may have about 100
MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 2**30

Launcher = Callable[[Path, Path, bool], Launch]


def postgresql(*, durable: bool = False) -> AbstractContextManager[str]:
    """A PostgreSQL server; ``durable`` keeps fsync on and the data on disk, if we start it."""
    return _server(
        POSTGRES_VARIABLE,
        "postgresql+asyncpg",
        programs.postgres_programs,
        programs.launch_postgres,
        durable,
    )


def mariadb(*, durable: bool = False) -> AbstractContextManager[str]:
    """A MariaDB or MySQL server; ``durable`` flushes each commit to a disk, if we start it."""
    return _server(
        MYSQL_VARIABLE,
        "mysql+asyncmy",
        programs.mysql_programs,
        programs.launch_mysql,
        durable,
    )


@contextmanager
def standby(primary: str) -> Generator[str]:
    """A PostgreSQL server that follows the one at ``primary``, with all its databases."""
    failures: list[str] = []
    for program in dict.fromkeys(path.resolve() for path in programs.postgres_programs()):

        def launch(program: Path, directory: Path, durable: bool) -> Launch:
            return programs.launch_standby(primary, program, directory)

        with ExitStack() as stack:
            try:
                url = stack.enter_context(_started(program, launch, durable=False))
            except (Unavailable, OSError) as error:
                failures.append(str(error))
                continue
            yield url
            return
    raise Unavailable("; ".join([*failures, "no standby starts here"]))


@contextmanager
def _server(
    variable: str, driver: str, find: Callable[[], list[Path]], launch: Launcher, durable: bool
) -> Generator[str]:
    """The URL that the variable gives, or else that of the first program that starts."""
    if given := os.environ.get(variable):
        try:
            address = make_url(given)
        except ArgumentError as error:
            raise Unavailable(f"{variable} is no URL of a database") from error
        yield address.set(drivername=driver).render_as_string(hide_password=False)
        return
    failures = [f"{variable} is not set"]
    with ExitStack() as stack:
        for program in dict.fromkeys(path.resolve() for path in find()):
            try:
                url = stack.enter_context(_started(program, launch, durable))
            except (Unavailable, OSError) as error:
                failures.append(str(error))
            else:
                yield url
                return
    raise Unavailable("; ".join([*failures, "no server program starts here"]))


@contextmanager
def _started(program: Path, launch: Launcher, durable: bool) -> Generator[str]:
    """Run a server program under its guard."""
    with _directory(durable) as directory:
        plan = launch(program, directory, durable)
        spec: guard.Spec = {
            "directory": str(directory),
            "user": UNPRIVILEGED,
            "prepare": plan.prepare,
            "serve": plan.serve,
            "stop_signal": plan.stop_signal,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, not for the server
        )
        try:
            _wait_until(plan.ready, process, program)
            yield plan.url
        finally:
            process.communicate(b"stop")


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], program: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if process.poll() is not None:
            errors = process.stderr.read().decode(errors="replace") if process.stderr else ""
            raise Unavailable(f"{program} failed: {errors.strip()}")
        if time.monotonic() > deadline:
            raise Unavailable(f"{program} did not answer within {START_TIMEOUT:g} s")
        time.sleep(0.01)


@contextmanager
def _directory(durable: bool) -> Generator[Path]:
    """A new private directory that the server's user reaches and owns."""
    directory = Path(tempfile.mkdtemp(prefix="eventmeta-", dir=_parent(durable)))
    try:
        if UNPRIVILEGED:
            programs.give(directory, UNPRIVILEGED)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _parent(durable: bool) -> Path:
    """In memory if that is allowed and large enough, as a database is some hundred files."""
    places = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]
    if not durable and _is_large_memory(MEMORY):
        places.insert(0, MEMORY)
    for place in places:
        if len(str(place)) <= MAX_PARENT and (not UNPRIVILEGED or programs.open_to_all(place)):
            return place
    raise Unavailable(
        f"no temporary directory that {UNPRIVILEGED or 'a server'} could use: {places}"
    )


def _is_large_memory(path: Path) -> bool:
    if not path.is_dir() or not os.access(path, os.W_OK):
        return False
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize >= MEMORY_NEEDED and not status.f_flag & os.ST_NOEXEC
