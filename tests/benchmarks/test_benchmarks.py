"""The benchmarks run, and would notice a peer that does not keep what it was given."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import growth, report, results, session
from benchmarks.backends import in_files, on_postgresql
from benchmarks.cli import main, parser
from benchmarks.crew import Crew, Team
from benchmarks.growing import INPUTS, Input
from benchmarks.growth import Growth
from benchmarks.peers import OURS, PEERS, Missing, Peer, PeerEntry, installed, offers
from benchmarks.peers.base import file_of
from benchmarks.peers.ours import Ours
from benchmarks.processes import Crews, Job
from benchmarks.results import Case, Result
from benchmarks.runner import SIZES, Size, take_turns
from benchmarks.scenarios import SCENARIOS, Scenario, WrongData, digest, log
from benchmarks.slow_disk import slow_sqlite
from tests.support.backends import Backend
from tests.support.processes import ROOT

TINY = Size(rounds=2, seconds=0.01, sessions=3, supply=5)
CALLED = {name: each for name, each in SCENARIOS.items() if isinstance(each, Scenario)}
MAX_MODULE_LINES = 200


@pytest.fixture(autouse=True)
def _short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "EVENTS", 5)


@asynccontextmanager
async def fresh(count: int) -> AsyncIterator[list[str]]:
    async with in_files(count, 0) as urls:
        yield urls


# --- Measuring ------------------------------------------------------------------------------------


def test_a_run_prints_and_stores_all_that_one_needs_to_judge_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(SIZES, "small", replace(TINY, rounds=1))
    file = tmp_path / "out.json"
    peers = (OURS, "bare-driver", "sqlalchemy")
    chosen = [word for peer in peers for word in ("--peer", peer)]
    chosen += [word for name in ("set", "history", "import") for word in ("--scenario", name)]
    settings = ["--callers", "2", "--fsync-ms", "0,0.1", "--stored", "2"]
    status = main(
        ["run", *chosen, *settings, "--backend", "sqlite", "--size", "small", "--json", str(file)]
    )
    printed = capsys.readouterr().out
    assert status == 0
    for expected in (
        *peers,
        "Machine: ",
        "Python ",
        "sqlalchemy ",
        "SQLite ",
        "Durability, the same for all: journal_mode=wal, synchronous=FULL",
        "sqlite: set, calls/s",
        "sqlite: import, ms",
        "sqlite: set, calls/s, commits +0.1 ms, 2 sessions stored",
        "2 callers",
        report.NONE,  # the bare driver keeps no history
    ):
        assert expected in printed
    assert "failed and were repeated" not in printed

    stored = results.load(file)
    assert stored.versions["SQLite"] == sqlite3.sqlite_version
    assert stored.durability["sqlite"].keys() == set(peers) - {"sqlalchemy"}
    assert len(stored.results) == 2 + 2 + 1
    found = {each.case: each for each in stored.results}[Case("sqlite", "set", 2, 1, 0.1, 2)]
    assert found.values.keys() == found.latencies.keys() == {OURS, "bare-driver"}
    assert found.hash


TOGETHER = (
    ("set", "get", "delete", "history", "as_of", "find"),
    ("add_items", "get_items", "pop_item"),
    ("append", "export"),
    ("rebuild", "catch_up"),
    ("list",),
)
"""Scenarios that do not mind each other's sessions."""


def test_no_scenario_is_left_out() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(CALLED)


@pytest.mark.parametrize("names", TOGETHER, ids=",".join)
async def test_every_peer_keeps_what_it_is_given(names: Sequence[str]) -> None:
    await everyone_keeps_it("sqlite", fresh, names)


async def test_every_peer_keeps_it_on_a_server(postgresql_backend: Backend) -> None:
    names = ("set", "history", "add_items", "append")
    async with postgresql_backend.database() as url:
        await everyone_keeps_it("postgresql", lambda count: on_postgresql(url, count, 0), names)


async def everyone_keeps_it(
    backend: str,
    databases: Callable[[int], AbstractAsyncContextManager[list[str]]],
    names: Sequence[str],
) -> None:
    """All peers that are installed take their turns, and read back the same in the end."""
    classes, _ = installed(backend, PEERS)
    always = {name for name, each in PEERS.items() if backend in each.classes and not each.packages}
    assert always <= classes.keys(), "these need nothing that may be missing"
    able = {
        peer: each
        for peer, each in classes.items()
        if any(offers(each, CALLED[name].needs) for name in names)
    }
    async with databases(len(able)) as urls, AsyncExitStack() as stack:
        peers: dict[str, Peer] = {}
        for (name, each), url in zip(able.items(), urls, strict=True):
            peers[name] = await each.open(url)
            stack.push_async_callback(peers[name].close)
        for name in names:
            callers = min(CALLED[name].most_callers or 2, 2)
            await take_their_turns(peers, Case(backend, name, callers))


async def take_their_turns(peers: Mapping[str, Peer], case: Case) -> None:
    scenario = CALLED[case.scenario]
    sessions = [f"{scenario.name}-{caller}" for caller in range(case.callers)]
    teams: dict[str, Team] = {
        name: Crew(peer, scenario, sessions)
        for name, peer in peers.items()
        if offers(type(peer), scenario.needs)
    }
    for team in teams.values():
        await team.prepare(stored=1)
    turns: list[str] = []
    result = await take_turns(case, scenario, teams, TINY, turns.append)
    assert turns == [*teams, *teams]
    assert result.values.keys() == teams.keys() >= {OURS}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in result.values.values())
    assert not any(result.failures.values())


class Forgetful(Ours):
    """Fast, as it does not write what it is given, except where it knows that it is tested."""

    async def set_metadata(self, session_id: str, metadata: Any) -> None:
        if session_id.endswith("proof"):
            await super().set_metadata(session_id, metadata)

    async def add_items(self, session_id: str, items: list[Any]) -> None:
        if session_id.endswith("proof"):
            await super().add_items(session_id, items)

    async def append(self, session_id: str, data: Any) -> None:
        if session_id.endswith("proof"):
            await super().append(session_id, data)


class Lazy(Ours):
    """Writes everything once, and never again."""

    async def set_metadata(self, session_id: str, metadata: Any) -> None:
        if await self.get_metadata(session_id, ["title"]) == {"title": None}:
            await super().set_metadata(session_id, metadata)

    async def delete_metadata(self, session_id: str, keys: Sequence[str]) -> None:
        pass

    async def add_items(self, session_id: str, items: list[Any]) -> None:
        if not await self.get_items(session_id, 1):
            await super().add_items(session_id, items)

    async def append(self, session_id: str, data: Any) -> None:
        if not await self.read_stream(session_id):
            await super().append(session_id, data)


@pytest.mark.parametrize(
    ("peer", "scenario"),
    [
        *((Forgetful, name) for name in CALLED),
        *((Lazy, name) for name in ("set", "delete", "history", "add_items", "append", "export")),
    ],
)
async def test_a_peer_that_does_less_is_found_out(peer: type[Ours], scenario: str) -> None:
    async with fresh(1) as (url,):
        crew = Crew(await peer.open(url), CALLED[scenario], ["a"])
        try:
            await crew.prepare(stored=0)
            with pytest.raises(WrongData):
                await take_turns(
                    Case("sqlite", scenario), CALLED[scenario], {"it": crew}, TINY, lambda _: None
                )
        finally:
            await crew.close()


async def test_the_hash_tells_other_data() -> None:
    """Were a peer to read back something else, and no check to notice, its hash would."""

    class Other(Crew):
        async def prove(self) -> str:
            return digest("other")

    async with fresh(2) as urls:
        scenario = CALLED["get"]
        teams = {
            "ours": Crew(await Ours.open(urls[0]), scenario, ["a"]),
            "other": Other(await Ours.open(urls[1]), scenario, ["a"]),
        }
        try:
            for team in teams.values():
                await team.prepare(stored=0)
            with pytest.raises(WrongData, match="different data"):
                await take_turns(Case("sqlite", "get"), scenario, teams, TINY, lambda _: None)
        finally:
            for team in teams.values():
                await team.close()


# --- Processes ------------------------------------------------------------------------------------


async def test_processes_work_together_on_one_database() -> None:
    async with fresh(1) as (url,):
        jobs = [
            Job(OURS, "sqlite", url, "get", [f"{name}-{number}" for number in range(2)])
            for name in ("a", "b")
        ]
        crews = await Crews.start(jobs)
        try:
            await crews.prepare(stored=1)
            await crews.warm_up()
            turn = await crews.turn(0.01)
            assert turn.units == len(turn.latencies) > 0
            await crews.check()
            assert await crews.prove() == await _proof("get")

            with closing(sqlite3.connect(file_of(url))) as connection, connection:
                found = connection.execute(
                    "UPDATE agent_sessions_metadata SET value = '1' WHERE session_id = 'b-1'"
                )
                assert found.rowcount == 3
            with pytest.raises(WrongData):
                await crews.check()
        finally:
            await crews.close()


async def test_a_process_that_cannot_open_its_peer_says_so(tmp_path: Path) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path / 'no' / 'test.db'}"
    jobs = [Job(OURS, "sqlite", nowhere, "get", [name]) for name in ("a", "b")]
    with pytest.raises(Exception, match="unable to open database file"):
        await Crews.start(jobs)
    assert not multiprocessing.active_children()


async def _proof(scenario: str) -> str:
    async with fresh(1) as (url,):
        crew = Crew(await Ours.open(url), CALLED[scenario], ["a"])
        try:
            return await crew.prove()
        finally:
            await crew.close()


# --- A slower disk --------------------------------------------------------------------------------


def test_each_commit_waits_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("benchmarks.slow_disk.time.sleep", waits.append)
    file = tmp_path / "test.db"
    with slow_sqlite(2), closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement, expected in (
            ("CREATE TABLE t (x INTEGER)", 0),
            ("INSERT INTO t VALUES (1)", 1),
            ("BEGIN IMMEDIATE", 1),
            ("INSERT INTO t VALUES (2)", 1),
            ("INSERT INTO t VALUES (3)", 1),
            ("COMMIT", 2),
            ("BEGIN", 2),
            ("SELECT * FROM t", 2),
            ("COMMIT", 2),
        ):
            connection.execute(statement)
            assert waits == [0.002] * expected, statement
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO t VALUES (4)")
    assert len(waits) == 2


async def test_each_commit_waits_on_postgresql(postgresql_backend: Backend) -> None:
    async with postgresql_backend.database() as server:
        for delay, expected in ((0, ("0", "5")), (1.5, ("1500", "0"))):
            async with on_postgresql(server, 1, delay) as (url,):
                engine = create_async_engine(url)
                async with engine.connect() as connection:
                    found = [
                        (await connection.execute(text(f"SHOW {name}"))).scalar_one()
                        for name in ("commit_delay", "commit_siblings")
                    ]
                await engine.dispose()
                assert tuple(found) == expected


# --- Peers and the command line -------------------------------------------------------------------


def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    absent = PeerEntry("absent", {"sqlite": "nowhere:Nobody"}, packages=("some-package",))
    with pytest.raises(Missing, match=r"absent is not installed .*pip install some-package"):
        absent.load("sqlite")


def test_who_is_not_installed_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(SIZES, "small", TINY)
    monkeypatch.setitem(
        PEERS,
        "absent",
        PeerEntry("absent", {"sqlite": "nowhere:Nobody"}, packages=("some[extra]",)),
    )
    arguments = ["--peer", "absent", "--peer", OURS, "--scenario", "get", "--callers", "1"]
    assert main(["run", "--backend", "sqlite", "--size", "small", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "absent is not installed" in printed
    assert "pip install some[extra]" in printed
    assert "sqlite: get" in printed


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_called_as_they_call_themselves(name: str) -> None:
    for backend in PEERS[name].classes:
        found, missing = installed(backend, [name])
        assert [each.name for each in found.values()] == ([] if missing else [name])


def test_unequal_durability_is_not_overlooked() -> None:
    assert report.durability({"a": "x", "b": "x"}) == "Durability, the same for all: x"
    assert report.durability({"a": "x", "b": "y"}).startswith("UNEQUAL DURABILITY")


def test_failed_calls_are_reported() -> None:
    found = Result(
        Case("sqlite", "set", 16),
        values={"eav": [1.0]},
        failures={"eav": 3},
        errors={"eav": "Locked"},
    )
    parts = report.results([found])
    expected = "3 calls of eav failed and were repeated: set on sqlite, 16 callers (Locked)"
    assert expected in parts


async def test_a_call_that_fails_is_counted_and_repeated() -> None:
    class Unlucky(Ours):
        calls = 0

        async def set_metadata(self, session_id: str, metadata: Any) -> None:
            self.calls += 1
            if self.calls % 2:
                raise OSError("no luck\nat all")
            await super().set_metadata(session_id, metadata)

    async with fresh(1) as (url,):
        crew = Crew(await Unlucky.open(url), CALLED["set"], ["a"])
        try:
            await crew.warm_up()
            turn = await crew.turn(0.05)
            await crew.check()
        finally:
            await crew.close()
    assert turn.failures in (turn.units, turn.units + 1)
    assert turn.error == "OSError: no luck"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run", "--callers", "0"],
        ["run", "--callers", "1,,2"],
        ["run", "--stored", "-1"],
        ["run", "--size", "huge"],
        ["run", "--fsync-ms", "inf"],
        ["run", "--fsync-ms", "101"],
        ["run", "--json", "/nowhere/out.json"],
        ["run", "--json", "/"],
        ["log", "--events", "0"],
    ],
)
def test_wrong_arguments_are_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)


def test_where_nobody_can_be_measured_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--backend", "sqlite", "--size", "small", "--scenario", "set"]
    assert main(["run", *arguments, "--peer", "upstream"]) == 1
    printed = capsys.readouterr().out
    assert "none of those chosen has what set needs" in printed
    assert "read back" not in printed


def test_a_server_that_does_not_answer_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("garbage", "postgresql://nobody@127.0.0.1:1/none"):
        monkeypatch.setenv("EVENTMETA_TEST_POSTGRES_URL", url)
        for command in (["run", "--scenario", "set"], ["log"]):
            assert main([*command, "--backend", "postgresql"]) == 1
            assert "No postgresql: " in capsys.readouterr().out


async def test_what_was_found_before_a_run_is_broken_off_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = vars(session)["measure"]

    async def broken_off(case: Case, *arguments: Any) -> Result:
        if case.callers == 2:
            raise asyncio.CancelledError
        result: Result = await measured(case, *arguments)
        return result

    monkeypatch.setitem(SIZES, "small", TINY)
    monkeypatch.setattr(session, "measure", broken_off)
    plan = session.Plan(["sqlite"], [OURS], ["set"], callers=(1, 2, 3), size="small")
    printed = io.StringIO()
    found = await session.run(plan, Console(file=printed, width=200))
    assert [result.case.callers for result in found.results] == [1]
    assert found.problems == ["Broken off: the rest was not measured"]
    assert "sqlite: set, calls/s" in printed.getvalue()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_is_broken_off_quietly(tmp_path: Path, processes: int) -> None:
    """Ctrl-C reaches the whole group of processes."""
    file = tmp_path / "out.json"
    chosen = ["--backend", "sqlite", "--peer", OURS, "--scenario", "set", "--size", "small"]
    callers = ",".join(map(str, range(1, 61)))  # enough for many times as long as this waits
    settings = ["--processes", str(processes), "--callers", callers, "--json", str(file)]
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "benchmarks", "run", *chosen, *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    while "Durability" not in (line := running.stdout.readline()):
        assert line, "it has ended"
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 1, printed
    assert "Traceback" not in printed
    assert "Broken off" in printed
    assert results.load(file).problems == ["Broken off: the rest was not measured"]


def test_modules_are_short() -> None:
    lines = {
        path: path.read_text(encoding="utf-8").count("\n")
        for path in Path(report.__file__).parent.rglob("*.py")
    }
    assert not [path for path, count in lines.items() if count > MAX_MODULE_LINES]


def test_a_whole_log_is_rebuilt_caught_up_and_exported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "--backend", "sqlite", "--events", "30"]) == 0
    printed = capsys.readouterr().out
    for what in ("rebuild, not compared", "row by row in Python", "catch-up", "export to Arrow"):
        assert what in printed
    assert re.search(r"rebuild / bare INSERT … SELECT of the fold: \d+\.\d\d×", printed)
    assert re.search(r"Peak memory of this process: \d+ MB", printed)


@pytest.mark.parametrize("name", INPUTS)
def test_every_call_is_timed_as_its_input_grows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(growth, "SIZES", (1, 2, 3))
    monkeypatch.setattr(growth, "LEAST_SECONDS", 60)
    monkeypatch.setenv("COLUMNS", "200")
    given = ["growth", "--backend", "sqlite", "--input", name, "--scale", "0.04"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert [call for call in INPUTS[name].calls if call not in printed] == []


async def test_what_grows_too_fast_is_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)

    calls: dict[str, Any] = {
        "linear": lambda _, n: wait(n / 5_000),
        "quadratic": lambda _, n: wait(n**2 / 500_000),
        "quadratic, but fast": lambda _, n: wait(n**2 / 10**8),
    }
    monkeypatch.setitem(INPUTS, "users", Input(10, calls))
    found = await growth.measure("sqlite", ["users"], 1.0, Console(file=io.StringIO()))
    (fault,) = growth.faults(found)
    assert re.fullmatch(r"users: quadratic grows with the power [12]\.\d\d", fault)
    assert 0.8 < found["users"]["linear"].exponent < 1.2


def test_growth_is_judged_between_the_two_largest_sizes() -> None:
    sizes = (100, 1_000, 10_000)
    for seconds, is_fault in {
        (1.0, 1.0, 10.0): False,
        (1.0, 1.0, 40.0): True,
        (0.1, 10.0, 100.0): False,
        (0.001, 0.001, 0.1): False,
    }.items():
        assert Growth(sizes, seconds).is_fault is is_fault
    assert Growth(sizes, (1.0, 1.0, 40.0)).least(Growth(sizes, (2.0, 2.0, 10.0))).seconds == [
        *(1.0, 1.0, 10.0)
    ]
