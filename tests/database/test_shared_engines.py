"""The engines behind ``from_url``: shared by a thread, and gone when nothing uses them."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import MetadataSession, MetadataStore
from eventmeta.database.engines import ENGINES_KEPT, shared_engine
from tests.support.backends import Backend
from tests.support.processes import run_python

URL = "sqlite+aiosqlite:////nowhere/x.db"

# --- Arguments -----------------------------------------------------------------------------------


def creator() -> None:
    """Not called."""


SAME: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "empty": dict,
    "plain": lambda: {"pool_size": 3},
    "nested": lambda: {"connect_args": {"timeout": 5, "uri": True}},
    "order": lambda: {"echo": False, "pool_size": 2},
    "class": lambda: {"poolclass": NullPool},
    "function": lambda: {"creator": creator},
}
OTHER: dict[str, Callable[[], Any]] = {
    "lambda": lambda: {"creator": lambda: None},
    "object": lambda: {"execution_options": {"tenant": object()}},
    "unhashable": lambda: {"execution_options": {"tenant": Unhashable()}},
}


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "all look the same"


@pytest.mark.parametrize("name", SAME)
def test_the_same_arguments_have_the_same_engine(name: str) -> None:
    assert shared_engine(URL, SAME[name]()) is shared_engine(URL, SAME[name]())


@pytest.mark.parametrize("name", OTHER)
def test_other_arguments_have_another_engine(name: str) -> None:
    arguments = OTHER[name]()
    engine = shared_engine(URL, arguments)
    assert shared_engine(URL, OTHER[name]()) is not engine
    assert shared_engine(URL, arguments) is engine


def test_an_argument_that_is_changed_later_is_another() -> None:
    arguments: dict[str, Any] = {"connect_args": {"timeout": 5}}
    engine = shared_engine(URL, arguments)
    arguments["connect_args"]["timeout"] = 6
    assert shared_engine(URL, arguments) is not engine
    assert shared_engine(URL, {"connect_args": {"timeout": 5}}) is engine


def test_a_true_one_is_not_a_one() -> None:
    assert shared_engine(URL, {"pool_size": 1}) is not shared_engine(URL, {"pool_size": True})


# --- How many ------------------------------------------------------------------------------------


async def test_new_arguments_each_time_do_not_accumulate(
    persistent_backend: Backend, url: str
) -> None:
    """Nor do their connections; but what a session uses goes on."""
    kept = MetadataSession.from_url("kept", url=url, create_tables=True)
    await kept.set_metadata({"k": 0})
    engines: list[weakref.ref[Any]] = []
    drivers: list[Any] = []
    for n in range(ENGINES_KEPT + 8):
        session = MetadataSession.from_url(
            "s", url=url, engine_kwargs={"execution_options": {"n": object()}}
        )
        engines.append(weakref.ref(session.engine.sync_engine))
        if n < 4:
            await session.set_metadata({"k": n})
            async with session.engine.connect() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                drivers.append(raw)
            del connection
        del session
    gc.collect()
    assert sum(each() is not None for each in engines) <= ENGINES_KEPT
    await kept.set_metadata({"k": 1})
    assert await kept.get_metadata() == {"k": 1}
    for _ in range(100):
        if all(map(is_closed, drivers)):
            break
        await asyncio.sleep(0.02)
    assert all(map(is_closed, drivers))
    await kept.engine.dispose()


def is_closed(driver: Any) -> bool:
    if hasattr(driver, "is_closed"):
        return bool(driver.is_closed())
    if hasattr(driver, "is_alive"):  # the thread of aiosqlite, in some versions
        return not driver.is_alive()
    thread = getattr(driver, "_thread", None)
    if thread is not None:
        return not thread.is_alive()
    transport = driver._transport  # of asyncmy
    return transport is None or transport._sock is None


@pytest.mark.parametrize("use", ["write", "read", "history", "find"])
async def test_nothing_keeps_an_engine_that_the_app_drops(url: str, use: str) -> None:
    engine = create_async_engine(url)
    session = MetadataSession("s", engine=engine, create_tables=True)
    await session.set_metadata({"k": 1})
    if use == "read":
        assert await session.get_metadata() == {"k": 1}
    elif use == "history":
        assert len(await session.history("k")) == 1
    elif use == "find":
        assert await MetadataStore(engine).find_sessions_by_metadata("k", 1) == ["s"]
    await engine.dispose()
    dropped = weakref.ref(engine.sync_engine)
    del session, engine
    gc.collect()
    assert dropped() is None


async def test_engines_end_with_their_thread(persistent_backend: Backend, url: str) -> None:
    store = MetadataStore.from_url(url)
    await store.create_tables()
    engines: list[weakref.ref[Any]] = []
    drivers: list[Any] = []

    async def use(n: int) -> None:
        session = MetadataSession.from_url("s", url=url)
        await session.set_metadata({f"k{n}": n})
        await session.get_metadata()
        await session.history()
        engines.append(weakref.ref(session.engine.sync_engine))
        async with session.engine.connect() as connection:
            drivers.append((await connection.get_raw_connection()).driver_connection)

    def run() -> None:
        asyncio.run(use(len(engines)))

    for _ in range(5):
        thread = threading.Thread(target=run)
        thread.start()
        await asyncio.to_thread(thread.join)
    gc.collect()
    assert [each() for each in engines] == [None] * 5
    for _ in range(100):
        if all(map(is_closed, drivers)):
            break
        await asyncio.sleep(0.02)
    assert all(map(is_closed, drivers))
    assert len(await store.session("s").get_metadata()) == 5
    await store.close()


# --- Forks ---------------------------------------------------------------------------------------

FORK = """
import asyncio, os, signal, sys
from sqlalchemy.ext.asyncio import create_async_engine
from eventmeta import MetadataSession, MetadataStore

url, kind = sys.argv[1:]
item = {"role": "user", "content": "x"}
own = create_async_engine(url) if kind == "own" else None

def session(name):
    if own is not None:
        return MetadataSession(name, engine=own)
    return MetadataSession.from_url(name, url=url)

async def use(name):
    one = session(name)
    await one.add_items([item])
    await asyncio.gather(*(session(f"{name}-{n}").set_metadata({"k": n}) for n in range(5)))
    return len(await one.get_items())

def child(name):
    signal.alarm(20)
    try:
        assert asyncio.run(use(name)) == 1
        assert asyncio.run(use(f"{name} again")) == 1
    except BaseException as error:
        print(name, type(error).__name__, error, flush=True)
        os._exit(1)
    os._exit(0)

def fork(name):
    pid = os.fork()
    if pid == 0:
        child(name)
    return pid

def wait(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status

async def within_a_loop():
    await session("within").set_metadata({"n": 0})
    for n in range(2):
        pid = fork(f"inner {n}")
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            await session("within").set_metadata({"n": n})
            assert await session("within").get_metadata() == {"n": n}

assert asyncio.run(use("parent")) == 1
pids = [fork(f"child {n}") for n in range(2)]
assert asyncio.run(use("parent")) == 2
for pid in pids:
    wait(pid)
assert asyncio.run(use("parent")) == 3
asyncio.run(within_a_loop())
print("done")
"""


FORK_WHILE_CREATING = """
import asyncio, os, sys
from sqlalchemy.ext.asyncio import create_async_engine
from eventmeta import MetadataStore
from eventmeta.database import opening

store = MetadataStore(create_async_engine(sys.argv[1]))
create = opening.create_tables

async def child():
    async with asyncio.timeout(20):
        await store.create_tables()
        await store.session("child").set_metadata({"k": 1})

def fork():
    pid = os.fork()
    if pid:
        return pid
    opening.create_tables = create
    try:
        asyncio.run(child())
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(1)
    os._exit(0)

async def forking(*arguments, **options):
    pid = fork()
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        await asyncio.sleep(0.02)
    assert ended[1] == 0, ended
    await create(*arguments, **options)

async def main():
    opening.create_tables = forking
    await store.create_tables()
    await store.session("parent").set_metadata({"k": 1})

asyncio.run(main())
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_child_does_not_wait_for_tables_that_its_parent_creates(
    persistent_url: str,
) -> None:
    done = await asyncio.to_thread(
        run_python, "-c", FORK_WHILE_CREATING, persistent_url, timeout=60
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["from_url", "own"])
async def test_parent_and_children_go_on(persistent_url: str, kind: str) -> None:
    engine = create_async_engine(persistent_url)
    await MetadataStore(engine).create_tables()
    done = await asyncio.to_thread(run_python, "-c", FORK, persistent_url, kind, timeout=90)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    for name in ("parent", "child 0", "child 1 again", "inner 0", "inner 1 again"):
        items = await MetadataSession(name, engine=engine).get_items()
        assert len(items) == (3 if name == "parent" else 1)
    await engine.dispose()
