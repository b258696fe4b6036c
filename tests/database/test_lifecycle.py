"""Engines, event loops and the end of the program."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import warnings
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, NewEvent, TablesMissing, verify_projection
from eventmeta.log import writer
from tests.support.backends import Backend
from tests.support.helpers import count_transactions, user, versions
from tests.support.processes import ROOT, run_python

# --- Event loops ---------------------------------------------------------------------------------


async def test_one_engine_serves_several_loops_in_turn(persistent_url: str) -> None:
    engine = create_async_engine(persistent_url)
    session = MetadataSession("s", engine=engine)

    async def work(n: int) -> None:
        await MetadataStore(engine).create_tables()
        await asyncio.gather(
            session.set_metadata({f"k{n}": n}),
            session.add_items([user(str(n))]),
            MetadataStore(engine).append("s", NewEvent("noted")),
        )
        await asyncio.gather(*(session.get_metadata() for _ in range(5)))
        assert len(await session.history()) == 3 * n
        async with engine.begin() as connection:
            await session.pop_item(connection=connection)
            await connection.rollback()

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for n in range(1, 4):
                asyncio.run(work(n))
            asyncio.run(engine.dispose())

    await asyncio.to_thread(run)


async def test_loops_that_are_closed_are_not_kept(
    persistent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where callers have waited for a place, so that a semaphore knows its loop."""
    monkeypatch.setattr(writer, "MAX_WAITING", 1)
    engine = create_async_engine(persistent_url)
    store = MetadataStore(engine)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def work() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await store.create_tables()
        await asyncio.gather(*(store.session(f"s{n}").set_metadata({"k": n}) for n in range(5)))

    def run() -> None:
        for _ in range(5):
            asyncio.run(work())
        gc.collect()
        assert sum(loop() is not None for loop in loops) <= 1, "the last, until there is another"
        asyncio.run(engine.dispose())

    await asyncio.to_thread(run)


LOOPS = """
import asyncio, gc, sys
from eventmeta import MetadataSession

async def work(n):
    session = MetadataSession.from_url("s", url=sys.argv[1], create_tables=True)
    await asyncio.gather(*(session.set_metadata({f"k{i}": n}) for i in range(5)))
    assert set((await session.get_metadata()).values()) == {n}

for n in range(3):
    asyncio.run(work(n))
    gc.collect()
print("done")
"""


async def test_asyncio_run_can_be_repeated(persistent_url: str, engine: AsyncEngine) -> None:
    ends_quietly(await asyncio.to_thread(run_python, "-c", LOOPS, persistent_url))
    session = MetadataSession("s", engine=engine)
    assert await session.get_metadata() == {f"k{i}": 2 for i in range(5)}
    assert await versions(session) == [*range(1, 16)]


# --- The end of the program ----------------------------------------------------------------------

FORGETS = """
import asyncio, sys
from eventmeta import MetadataSession

async def main():
    session = MetadataSession.from_url("s", url=sys.argv[1], create_tables=True)
    await session.set_metadata({"k": 1})
    assert await session.get_metadata() == {"k": 1}
    await session.add_items([{"role": "user", "content": "x"}])

asyncio.run(main())
print("done")
"""
DISPOSES = FORGETS.replace("\n\nasyncio.run", "\n    await session.engine.dispose()\n\nasyncio.run")
STOPS_MIDWAY = """
import asyncio, sys
from eventmeta import MetadataStore

async def main():
    store = MetadataStore.from_url(sys.argv[1])
    await store.create_tables()
    session = store.session("s")
    for n in range(50):
        for i in range(4):
            asyncio.create_task(session.set_metadata({f"k{n}.{i}": n}))
        for _ in range(n % 7):
            await asyncio.sleep(0)
    await session.get_metadata()

asyncio.run(main())
print("done")
"""
CLOSES = """
import asyncio, sys
from eventmeta import MetadataStore

async def main():
    async with MetadataStore.from_url(sys.argv[1]) as store:
        await store.create_tables()
        for n in range(20):
            asyncio.create_task(store.session("s").set_metadata({f"k{n}": n}))
        await asyncio.sleep(0)

asyncio.run(main())
print("done")
"""
PROGRAMS = {"forgets": FORGETS, "disposes": DISPOSES, "stops": STOPS_MIDWAY, "closes": CLOSES}


def ends_quietly(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.stderr, done.returncode, done.stdout) == ("", 0, "done\n")


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_ends_quietly_whatever_it_forgets(
    url: str, engine: AsyncEngine, name: str, backend: Backend
) -> None:
    ends_quietly(await asyncio.to_thread(run_python, "-c", PROGRAMS[name], url, timeout=30))
    if backend.name != "sqlite-memory":
        store = MetadataStore(engine)
        found = await versions(store.session("s"))
        assert found == list(range(1, len(found) + 1))
        assert len(found) == {"forgets": 2, "disposes": 2, "closes": 20}.get(name, len(found))
        assert len(await store.session("s").get_metadata()) == {
            "forgets": 1,
            "disposes": 1,
        }.get(name, len(found))
        assert await verify_projection(store) == []


# --- Engines -------------------------------------------------------------------------------------


async def pragmas(engine: AsyncEngine) -> dict[str, Any]:
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    async with engine.connect() as connection:
        return {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in names
        }


@pytest.mark.usefixtures("sqlite_file_backend")
@pytest.mark.parametrize("pooled", [False, True])
async def test_sqlite_connections_are_configured(engine: AsyncEngine, pooled: bool) -> None:
    if pooled:
        async with engine.connect() as one, engine.connect() as two:
            await one.exec_driver_sql("SELECT 1")
            await two.exec_driver_sql("SELECT 1")
    await MetadataStore(engine).create_tables()
    async with engine.connect():
        found = await pragmas(engine)
    for settings in (found, await pragmas(engine)):
        assert settings.pop("busy_timeout") >= 1_000
        # Foreign keys are for the app to turn on.
        assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 0}


@pytest.mark.usefixtures("mariadb_backend")
async def test_mariadb_tells_all_texts_apart(store: MetadataStore) -> None:
    async with store.engine.connect() as connection:
        columns = await connection.exec_driver_sql(
            "SELECT DISTINCT collation_name FROM information_schema.columns "
            "WHERE table_schema = database() AND collation_name IS NOT NULL "
            "AND table_name <> 'agent_metadata_changes'"
        )
        assert columns.scalars().all() == ["utf8mb4_nopad_bin"]


async def test_sessions_of_one_url_share_a_writer(
    persistent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [
        MetadataSession.from_url(f"s{n}", url=persistent_url, create_tables=True) for n in range(10)
    ]
    store = MetadataStore(sessions[0].engine)
    await store.create_tables()
    begun = count_transactions(store, monkeypatch)
    await asyncio.gather(*(session.set_metadata({"k": 1}) for session in sessions))
    assert len(begun) == 1
    assert {id(session.engine) for session in sessions} == {id(store.engine)}
    await store.engine.dispose()


async def test_in_memory_databases_of_one_url_are_not_shared() -> None:
    one, two = (
        MetadataSession.from_url("s", url="sqlite+aiosqlite://", create_tables=True)
        for _ in range(2)
    )
    await one.set_metadata({"k": 1})
    assert await two.get_metadata() == {}
    await one.engine.dispose()
    await two.engine.dispose()


async def test_an_in_memory_database_is_shared_with_upstream() -> None:
    """One connection serves all, so a careless rollback would take others' rows along."""
    engine = create_async_engine("sqlite+aiosqlite://")
    store = MetadataStore(engine)
    await store.create_tables()
    ours = store.session("s")
    theirs = SQLAlchemySession("t", engine=engine)
    acknowledged = 0

    async def upstream() -> None:
        nonlocal acknowledged
        for n in range(60):
            await theirs.add_items([user(str(n))])
            acknowledged += 1

    async def write() -> None:
        for n in range(60):
            await ours.set_metadata({f"k{n}": n})
            await ours.add_items([user(str(n))])

    async def read() -> None:
        for _ in range(60):
            await ours.get_metadata()
            reading = asyncio.create_task(ours.history())
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])

    await asyncio.gather(upstream(), write(), read())
    assert acknowledged == 60
    assert await theirs.get_items() == [user(str(n)) for n in range(60)]
    assert await ours.get_items() == [user(str(n)) for n in range(60)]
    assert len(await ours.get_metadata()) == 60
    assert await versions(ours) == list(range(1, 121))
    await engine.dispose()


async def test_one_connection_is_enough(persistent_url: str) -> None:
    engine = create_async_engine(persistent_url, pool_size=1, max_overflow=0, pool_timeout=20)
    store = MetadataStore(engine)
    await store.create_tables()
    sessions = [store.session(f"s{n}") for n in range(10)]

    async def work(session: MetadataSession) -> None:
        await session.set_metadata({"k": 1})
        await asyncio.gather(session.get_metadata(), session.history(), session.get_items())
        await session.add_items([user("x")])
        assert [event.version async for event in store.events(stream=session.session_id)] == [1, 2]

    await asyncio.gather(*map(work, sessions))
    async with engine.begin() as connection:
        await sessions[0].set_metadata({"k": 2}, connection=connection)
    assert await sessions[0].get_metadata() == {"k": 2}
    await engine.dispose()


# --- Missing tables ------------------------------------------------------------------------------

CALLS: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "set": lambda store: store.session("s").set_metadata({"k": 1}),
    "pop": lambda store: store.session("s").pop_item(),
    "append": lambda store: store.append("s", NewEvent("noted")),
    "get": lambda store: store.session("s").get_metadata(),
    "items": lambda store: store.session("s").get_items(),
    "history": lambda store: store.session("s").history(),
    "search": lambda store: store.find_sessions_by_metadata("k", 1),
    "horizon": lambda store: store.horizon(),
    "verify": verify_projection,
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_missing_table_says_what_creates_it(engine: AsyncEngine, name: str) -> None:
    store = MetadataStore(engine)
    with pytest.raises(TablesMissing, match=r"create_tables\(\)"):
        await CALLS[name](store)
    await store.create_tables()
    await CALLS[name](store)


async def test_a_missing_table_says_so_within_a_transaction(engine: AsyncEngine) -> None:
    session = MetadataSession("s", engine=engine)
    async with engine.connect() as connection:
        with pytest.raises(TablesMissing, match=r"create_tables\(\)"):
            await session.set_metadata({"k": 1}, connection=connection)


# --- Imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["projections/__init__.py", "projections.py"])
def test_a_package_of_the_apps_with_the_same_name_is_named(tmp_path: Path, place: str) -> None:
    shadow = tmp_path / place
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("SALES = 'the app has projections of its own'\n")
    code = f"import sys; sys.path.insert(1, {str(ROOT)!r}); import eventmeta"
    done = run_python("-c", code, folder=tmp_path)
    assert done.returncode == 1
    assert "ImportError: eventmeta needs its own top-level package `projections`" in done.stderr
    assert "Rename that one" in done.stderr


def test_importing_eventmeta_does_not_import_the_agents_sdk() -> None:
    code = (
        "import sys, eventmeta; store = eventmeta.MetadataStore.from_url('sqlite+aiosqlite://')\n"
        "store.session('s'); print('agents' in sys.modules)"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
