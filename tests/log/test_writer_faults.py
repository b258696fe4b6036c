"""Writes survive lost connections and busy databases: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import (
    DatabaseBusy,
    ItemAlreadyPopped,
    MetadataSession,
    MetadataStore,
    OutcomeUnknown,
    new_event_id,
    verify_projection,
)
from eventmeta.database import retry as retrying
from tests.support.backends import Backend
from tests.support.helpers import count_transactions, user, versions
from tests.support.rebuilding import applied_in_order, trace

Act = Callable[[MetadataSession], Awaitable[Any]]


# --- Lost connections ---------------------------------------------------------------------------

KILL = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist "
    "WHERE db = database() AND id <> connection_id()",
}


KILLS = 100
"""How many connections are lost; a busy machine may do no write between two of them."""


@pytest.fixture
async def kill(server_backend: Backend, url: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Ends all other connections to the database, and says how many."""
    admin = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    async def kill_all() -> int:
        async with admin.connect() as connection:
            found = (await connection.execute(text(KILL[server_backend.name]))).all()
            for (number,) in found if server_backend.name == "mariadb" else ():
                with suppress(DBAPIError):  # it has ended by itself
                    await connection.exec_driver_sql(f"KILL {number}")
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
    """Not even where no attempt gets through in time, and the app repeats the call."""
    sessions = [store.session(f"s{n}", retry_for=retrying.RETRY_SECONDS) for n in range(4)]
    texts = [str(n) for n in range(12)]
    popped: list[Any] = []

    async def work(session: MetadataSession) -> None:
        for n in texts:
            await known(partial(session.add_items, [user(n)]))
            await known(partial(session.set_metadata, {f"k{n}": n}))
        for n in reversed(texts[6:]):
            try:
                popped.append(await known(session.pop_item))
            except ItemAlreadyPopped:  # by an attempt whose answer was lost
                popped.append(user(n))

    tasks = [asyncio.create_task(work(session)) for session in sessions]
    killed = 0
    while killed < KILLS and not all(task.done() for task in tasks):
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


async def known(call: Callable[..., Awaitable[Any]]) -> Any:
    """Repeat ``call`` under its event id while its outcome is not known, and return its result.

    The store must have tried for as long as it promises to.
    """
    event_id = new_event_id()
    for _ in range(4):
        begun = time.monotonic()
        try:
            return await call(event_id=event_id)
        except OutcomeUnknown:
            assert time.monotonic() - begun >= retrying.RETRY_SECONDS
    return await call(event_id=event_id)


async def test_a_server_is_looked_for_from_when_it_was_there_last(
    server_backend: Backend, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as if it was gone from the start, however long attempts were lost before."""
    session = store.session("s", retry_for=0.2)
    write, begun = store._log.database.dialect.write, time.monotonic()
    unreachable: list[None] = []

    async def fails(*arguments: Any, **options: Any) -> Any:
        if time.monotonic() - begun < 0.5:
            await write(*arguments, **options)
            raise ConnectionResetError("as if the server had gone right after the commit")
        if not unreachable:
            unreachable.append(None)
            raise ConnectionRefusedError("as if the server let nobody in")
        return await write(*arguments, **options)

    monkeypatch.setattr(store._log.database.dialect, "write", fails)
    await session.set_metadata({"k": 1})
    assert unreachable
    assert await versions(session) == [1]


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
    write = store._log.database.dialect.write
    lost: list[Any] = []

    async def loses_the_answer(*arguments: Any, **options: Any) -> Any:
        result = await write(*arguments, **options)
        if not lost:
            lost.append(result)
            raise ConnectionResetError("as if the server had gone right after the commit")
        return result

    monkeypatch.setattr(store._log.database.dialect, "write", loses_the_answer)
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
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.2)
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
