"""The harness itself works: backends, isolation of tests, end of servers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.conftest import REQUIRE_VARIABLE, all_returned, watch_connections
from tests.support import servers
from tests.support.backends import PERSISTENT, SERVERS, Backend
from tests.support.processes import ROOT, run_python
from tests.support.servers import MYSQL_VARIABLE, POSTGRES_VARIABLE

HOLD_A_SERVER = """
import sys
from tests.support import servers
try:
    with servers.{kind}() as url:
        print(url, flush=True)
        sys.stdin.read()
except servers.Unavailable as error:
    print("unavailable:", error, flush=True)
"""


async def table_names(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: inspect(sync).get_table_names())


async def test_a_backend_answers(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_database(engine: AsyncEngine, turn: int) -> None:
    assert await table_names(engine) == []
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE left_behind (a INT)"))
    assert await table_names(engine) == ["left_behind"]


async def test_a_test_may_have_several_databases(backend: Backend) -> None:
    async with backend.database() as one, backend.database() as other:
        first, second = create_async_engine(one), create_async_engine(other)
        async with first.begin() as connection:
            await connection.execute(text("CREATE TABLE mine (a INT)"))
        assert await table_names(second) == []
        await first.dispose()
        await second.dispose()


async def test_a_database_is_dropped_in_spite_of_open_connections(server_backend: Backend) -> None:
    async with server_backend.database() as url:
        engine = create_async_engine(url)
        connection = await engine.connect()
        await connection.execute(text("CREATE TABLE locked (a INT)"))
        await connection.execute(text("SELECT * FROM locked"))
    await connection.invalidate()
    await connection.close()
    with pytest.raises(Exception, match=r"does not exist|Unknown database"):
        await engine.connect()
    await engine.dispose()


async def test_text_of_every_plane(engine: AsyncEngine) -> None:
    """The connection and the database carry any Unicode character."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE words (word VARCHAR(20))"))
        await connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": "é🐘"})
        assert await connection.scalar(text("SELECT word FROM words")) == "é🐘"


async def test_narrowing_to_servers(server_backend: Backend, url: str) -> None:
    assert server_backend.name in SERVERS
    assert server_backend.is_server


@pytest.mark.only_on("sqlite-memory", "mariadb")
@pytest.mark.parametrize("part", ["any", pytest.param("one", marks=pytest.mark.only_on("mariadb"))])
async def test_a_test_and_a_parameter_may_be_for_some_backends(backend: Backend, part: str) -> None:
    assert backend.name in ("sqlite-memory", "mariadb")
    assert part == "any" or backend.name == "mariadb"


async def test_another_process_reaches_a_persistent_database(
    backend: Backend, persistent_url: str
) -> None:
    assert backend.name in PERSISTENT
    engine = create_async_engine(persistent_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE shared (a INT)"))
    await engine.dispose()
    script = (
        "import asyncio, sys\n"
        "from sqlalchemy.ext.asyncio import create_async_engine\n"
        "from tests.support.test_harness import table_names\n"
        "print(asyncio.run(table_names(create_async_engine(sys.argv[1]))))"
    )
    done = await asyncio.to_thread(run_python, "-c", script, persistent_url)
    assert (done.stdout.strip(), done.stderr) == ("['shared']", "")


async def test_a_leaked_connection_is_noticed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conftest.CHECK_IN_TURNS", 5)
    engine = create_async_engine(url)
    checked_out = watch_connections(engine)
    connection = await engine.connect()
    with pytest.raises(AssertionError, match="1 connections"):
        await all_returned(checked_out)
    await connection.close()
    await all_returned(checked_out)
    await engine.dispose()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def process_with_server(kind: str) -> Generator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a server of its own, and that server's directory."""
    environment = os.environ.copy()
    for variable in (POSTGRES_VARIABLE, MYSQL_VARIABLE):
        environment.pop(variable, None)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER.format(kind=kind)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        if answer.startswith("unavailable:"):
            pytest.skip(answer)
        query = make_url(answer).query
        place = query.get("host") or query.get("unix_socket")
        assert isinstance(place, str)
        try:
            yield process, Path(place) if kind == "postgresql" else Path(place).parent
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["closes", "SIGINT", "SIGKILL"])
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_ends_with_the_process_that_started_it(kind: str, end: str) -> None:
    with process_with_server(kind) as (process, directory):
        server = int((directory / "pid").read_text())
        assert is_running(server)
        if end == "closes":
            process.communicate()
            assert not is_running(server)
        else:
            os.killpg(process.pid, signal.Signals[end])
        deadline = time.monotonic() + 20
        while (is_running(server) or directory.exists()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_running(server)
        assert not directory.exists()


@pytest.mark.parametrize(
    ("variable", "serve", "driver"),
    [
        (POSTGRES_VARIABLE, servers.postgresql, "postgresql+asyncpg"),
        (MYSQL_VARIABLE, servers.mariadb, "mysql+asyncmy"),
    ],
)
def test_a_variable_names_the_server(
    variable: str,
    serve: Callable[[], AbstractContextManager[str]],
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheme = driver.split("+", maxsplit=1)[0]
    monkeypatch.setenv(variable, f"{scheme}://me:secret@db.example:1234/main")
    with serve() as url:
        assert url == f"{driver}://me:secret@db.example:1234/main"


def test_a_program_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("postgres", "initdb"):
        program = tmp_path / "lib" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\necho no room >&2; exit 3\n")
        program.chmod(0o755)
    broken = tmp_path / "lib" / "bin" / "postgres"
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    monkeypatch.setattr("tests.support.programs.postgres_programs", lambda: [broken])
    why = pytest.raises(servers.Unavailable, match=r"(?s)exit status 3.*no room")
    with why, servers.postgresql():
        pass


def run_without_servers(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test of this module where nothing but SQLite can be had."""
    script = (
        "import sys, pytest\n"
        "from tests.support import programs\n"
        "programs.postgres_programs = programs.mysql_programs = lambda: []\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-k", "a_backend_answers"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EVENTMETA_")}
    return run_python("-c", script, *options, str(Path(__file__)), environment=clean | environment)


def test_a_backend_that_cannot_be_had_is_skipped_loudly() -> None:
    done = run_without_servers()
    assert done.returncode == 0, done.stdout
    assert "2 passed, 2 skipped" in done.stdout
    for name, variable in (("postgresql", POSTGRES_VARIABLE), ("mariadb", MYSQL_VARIABLE)):
        assert f"SKIPPED BACKEND {name}: {variable} is not set" in done.stdout


def test_a_required_backend_fails_the_run() -> None:
    done = run_without_servers(**{REQUIRE_VARIABLE: "1"})
    assert done.returncode != 0
    assert "SKIPPED BACKEND postgresql" in done.stdout
