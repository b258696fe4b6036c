"""Writes survive lost connections and busy databases: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import DatabaseBusy, MetadataSession, MetadataStore, log, verify_projection
from tests.backends import Backend
from tests.helpers import count_transactions, user, versions
from tests.rebuilding import applied_in_order, trace

Act = Callable[[MetadataSession], Awaitable[Any]]


# --- Lost connections ---------------------------------------------------------------------------

KILL = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist "
    "WHERE db = database() AND id <> connection_id()",
}


@pytest.fixture
async def kill(server_backend: Backend, url: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Ends all other connections to the database, and says how many."""
    admin = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    async def kill_all() -> int:
        async with admin.connect() as connection:
            found = (await connection.execute(text(KILL[server_backend.name]))).all()
            for (number,) in found if server_backend.name == "mariadb" else ():
                # It may have ended by itself.
                await connection.exec_driver_sql(f"KILL {number}") if number else None
            return len(found)

    yield kill_all
    await admin.dispose()


async def test_a_connection_lost_between_writes_is_replaced(
    store: MetadataStore, kill: Callable[[], Awaitable[int]]
) -> None:
    session = store.session("s")
    for n in range(3):
        await asyncio.gather(*(session.set_metadata({f"k{n}.{i}": i}) for i in range(3)))
        await asyncio.gather(*(session.get_metadata() for _ in range(3)))
        assert await kill() > 0
        assert len(await session.get_metadata()) == 3 * (n + 1)
    assert await versions(session) == list(range(1, 10))


async def test_a_lost_connection_leaves_its_place_in_the_pool(
    persistent_url: str, kill: Callable[[], Awaitable[int]]
) -> None:
    """Also where each append is a transaction with a projection in plain Python."""
    settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
    async with MetadataStore.from_url(persistent_url, engine_kwargs=settings) as store:
        store.register(trace(), inline=True)
        await store.create_tables()
        session = store.session("s")
        for n in range(5):
            await session.set_metadata({f"k{n}": n})
            await kill()
        await session.set_metadata({"last": True})
        assert len(await applied_in_order(store)) == 6


async def test_connections_lost_at_any_moment_lose_and_repeat_nothing(
    store: MetadataStore, kill: Callable[[], Awaitable[int]]
) -> None:
    sessions = [store.session(f"s{n}") for n in range(4)]
    texts = [str(n) for n in range(12)]
    popped: list[Any] = []

    async def work(session: MetadataSession) -> None:
        for n in texts:
            await session.add_items([user(n)])
            await session.set_metadata({f"k{n}": n})
        for _ in texts[:6]:
            popped.append(await session.pop_item())  # noqa: PERF401 (each as it comes)

    tasks = [asyncio.create_task(work(session)) for session in sessions]
    killed = 0
    while not all(task.done() for task in tasks):
        killed += await kill()
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert killed > 0
    assert sorted(map(str, popped)) == sorted(str(user(n)) for n in texts[6:] * len(sessions))
    for session in sessions:
        assert await session.get_items() == [user(n) for n in texts[:6]]
        assert await session.get_metadata() == {f"k{n}": n for n in texts}
        assert await versions(session) == list(range(1, 31))
    assert await verify_projection(store) == []


WRITES: dict[str, Act] = {
    "set": lambda session: session.set_metadata({"k": 2}),
    "set, expecting": lambda session: session.set_metadata({"k": 2}, expected_version=2),
    "delete": lambda session: session.delete_metadata(["k"]),
    "add": lambda session: session.add_items([user("c")]),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
}


@pytest.mark.parametrize("name", WRITES)
async def test_an_answer_lost_after_the_commit_repeats_nothing(
    server_backend: Backend,
    store: MetadataStore,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    session = store.session("s")
    await session.set_metadata({"k": 1})
    await session.add_items([user("a"), user("b")])
    write = store._database.dialect.write
    lost: list[Any] = []

    async def loses_the_answer(*arguments: Any, **options: Any) -> Any:
        result = await write(*arguments, **options)
        if not lost:
            lost.append(result)
            raise ConnectionResetError("as if the server had gone right after the commit")
        return result

    monkeypatch.setattr(store._database.dialect, "write", loses_the_answer)
    result = await WRITES[name](session)
    assert lost
    assert await versions(session) == [1, 2, 3]
    expected_items = {"add": ["a", "b", "c"], "pop": ["a"], "clear": []}.get(name, ["a", "b"])
    assert await session.get_items() == [user(text) for text in expected_items]
    assert result == user("b") if name == "pop" else result.version == 3


# --- A busy database ----------------------------------------------------------------------------


@pytest.fixture
async def impatient(sqlite_file_backend: Backend, store: MetadataStore) -> MetadataStore:
    """On SQLite, where a writer locks the whole database; its own timeout is nearly off."""
    async with store.engine.connect() as connection:
        await connection.exec_driver_sql("PRAGMA busy_timeout = 1")
    return store


@pytest.mark.parametrize("callers", [1, 30])
async def test_a_database_that_stays_busy_is_reported_in_time(
    impatient: MetadataStore, monkeypatch: pytest.MonkeyPatch, callers: int
) -> None:
    monkeypatch.setattr(log, "RETRY_SECONDS", 0.2)
    store, begun = impatient, count_transactions(impatient, monkeypatch)
    session = store.session("s")
    other = sqlite3.connect(str(store.engine.url.database), isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        calls = [session.set_metadata({f"k{n}": n}) for n in range(callers)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        attempts = len(begun)
    finally:
        other.close()
    assert {type(result) for result in results} == {DatabaseBusy}
    assert attempts > 2
    assert attempts < 100, "the bound must hold for the batch, not for each of its callers"
    assert await session.get_metadata() == {}
    await session.set_metadata({"k": 1})
    assert await versions(session) == [1]


async def test_a_database_that_is_busy_for_a_while_is_waited_for(
    impatient: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun = impatient, count_transactions(impatient, monkeypatch)
    other = sqlite3.connect(str(store.engine.url.database), isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.session("s").set_metadata({"k": 1}))
        while len(begun) < 3:
            await asyncio.sleep(0.001)
    finally:
        other.close()
    event = await waiting
    assert event is not None
    assert event.version == 1
