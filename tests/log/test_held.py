"""A session that an open transaction holds, and that only its own writers wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import (
    DatabaseBusy,
    EventMetaError,
    MetadataSession,
    MetadataStore,
    verify_projection,
)
from eventmeta.log import lanes, writer
from tests.support.backends import Backend
from tests.support.helpers import user, versions

SOON = 1.5
"""What nobody who waits for the lock would be done in, on a machine with much else to do."""

HOLDS = {
    "head": "SELECT version FROM agent_streams WHERE stream_id = 'held' AND "
    "stream_type = 'session' FOR UPDATE",
    "session": "UPDATE agent_sessions SET updated_at = updated_at WHERE session_id = 'held'",
    "session, for good": "SELECT * FROM agent_sessions WHERE session_id = 'held' FOR UPDATE",
    "items": "SELECT id FROM agent_messages WHERE id = 1 FOR UPDATE",
    "table": "LOCK TABLE agent_sessions IN EXCLUSIVE MODE",
}

Act = Callable[[MetadataSession], Awaitable[Any]]
WRITES: dict[str, Act] = {
    "set": lambda session: session.set_metadata({"k": 1}),
    "set, expecting": lambda session: session.set_metadata({"k": 1}, expected_version=2),
    "add": lambda session: session.add_items([user("b")]),
    "pop": lambda session: session.pop_item(),
    "delete": lambda session: session.delete_metadata(["k"]),
    "clear": lambda session: session.clear_session(keep_metadata=True),
}
WAITING = [
    *(("head", name) for name in WRITES),
    *(("session", name) for name in ("add", "pop", "clear")),
    *(("session, for good", name) for name in ("add", "pop", "clear")),
    *(("items", name) for name in ("pop", "clear")),
]


@pytest.fixture
async def hold(server_backend: Backend, url: str) -> AsyncIterator[Callable[[str], Any]]:
    """Hold something in a transaction, as another process might, until the end of the block."""
    engine = create_async_engine(url, poolclass=NullPool)

    @asynccontextmanager
    async def holding(what: str) -> AsyncIterator[None]:
        async with engine.connect() as connection:
            await connection.execute(text(HOLDS.get(what, what)))
            yield
            await connection.rollback()

    yield holding
    await engine.dispose()


async def prepare(store: MetadataStore, *names: str) -> list[MetadataSession]:
    sessions = [store.session(name) for name in names]
    for session in sessions:
        await session.set_metadata({"k": 0})
        await session.add_items([user("a")])
    return sessions


def start(*calls: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


async def seconds(*calls: Awaitable[Any]) -> float:
    begin = time.monotonic()
    await asyncio.gather(*calls)
    return time.monotonic() - begin


# --- Others -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("held", "write"), WAITING)
async def test_others_do_not_wait(
    store: MetadataStore, hold: Callable[[str], Any], held: str, write: str
) -> None:
    session, *others = await prepare(store, "held", "a", "b", "z")
    # Of a small table MariaDB would read, and so lock, every row.
    await store.session("other").add_items([user(n) for n in range(300)])
    async with hold(held):
        calls = [WRITES[write](each) for each in (others[0], session, *others[1:])]
        waiting = start(*calls)
        took = await seconds(waiting[0], *waiting[2:])
        again = await seconds(*(other.add_items([user("c")]) for other in others))
        assert not waiting[1].done()
    await waiting[1]
    assert max(took, again) < SOON
    for each in (session, *others):
        assert (await versions(each))[:3] == [1, 2, 3]
    assert await verify_projection(store) == []


async def test_others_do_not_wait_for_a_session_that_is_being_made(
    postgresql_backend: Backend, store: MetadataStore, hold: Callable[[str], Any]
) -> None:
    (other,) = await prepare(store, "a")
    async with hold("INSERT INTO agent_streams VALUES ('held', 'session', 0, now(), NULL)"):
        waiting = start(store.session("held").set_metadata({"k": 1}))
        assert await seconds(other.set_metadata({"k": 1}), other.set_metadata({"k": 2})) < SOON
        assert not waiting[0].done()
    assert (await waiting[0]).version == 1


async def test_where_all_is_locked_all_wait_and_go_on(
    postgresql_backend: Backend, store: MetadataStore, hold: Callable[[str], Any]
) -> None:
    sessions = await prepare(store, *(f"s{n}" for n in range(20)))
    async with hold("table"):
        waiting = start(*(session.add_items([user("b")]) for session in sessions * 2))
        await asyncio.sleep(0.3)
        assert not any(call.done() for call in waiting)
    await asyncio.gather(*waiting)
    assert [await versions(session) for session in sessions] == [[1, 2, 3, 4]] * 20


@pytest.mark.parametrize("size", [1, 5])
async def test_those_that_wait_leave_connections_for_others(
    server_backend: Backend, url: str, hold: Callable[[str], Any], size: int
) -> None:
    """Many sessions are held, and the pool is small."""
    settings = {"pool_size": size, "max_overflow": 0, "pool_timeout": SOON}
    async with MetadataStore.from_url(url, engine_kwargs=settings) as store:
        await store.create_tables()
        *sessions, other = await prepare(store, *(f"held {n}" for n in range(8)), "a")
        async with hold("SELECT * FROM agent_streams WHERE stream_id LIKE 'held%' FOR UPDATE"):
            waiting = start(*(session.set_metadata({"k": 1}) for session in sessions))
            await asyncio.sleep(0.2)
            for n in range(5):
                assert await seconds(other.set_metadata({"n": n}), other.get_metadata()) < SOON
            assert not any(call.done() for call in waiting)
        await asyncio.gather(*waiting)
        assert await verify_projection(store) == []


# --- Those that wait ----------------------------------------------------------------------------


async def test_those_that_wait_keep_their_order(
    store: MetadataStore, hold: Callable[[str], Any]
) -> None:
    """Submitted before the session was found to be held, meanwhile, and as it becomes free."""
    session, other = await prepare(store, "held", "other")
    order: list[int] = []

    async def write(n: int) -> None:
        await (session.add_items([user(n)]) if n % 3 else session.set_metadata({"last": n}))
        order.append(n)

    async with hold("head"):
        calls = start(*(write(n) for n in range(20)))
        for n in range(20, 40):
            await asyncio.sleep(0.01)
            calls += start(write(n))
        await other.set_metadata({"k": 1})
        assert order == []
    await asyncio.sleep(0)
    calls += start(*(write(n) for n in range(40, 60)))
    await asyncio.gather(*calls)
    assert order == list(range(60))
    assert await session.get_items() == [user("a"), *(user(n) for n in range(60) if n % 3)]
    assert await session.get_metadata(["last"]) == {"last": 57}
    assert await versions(session) == list(range(1, 63))


async def test_it_is_told_in_time(
    store: MetadataStore, hold: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "HELD_SECONDS", 0.3)
    monkeypatch.setattr(store.log._writer.here._lanes, "_in_line", asyncio.Semaphore(0))
    (session,) = await prepare(store, "held")
    async with hold("head"):
        calls = [session.set_metadata({"k": n}) for n in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, DatabaseBusy)
            assert error.held
    assert await versions(session) == [1, 2]
    await session.set_metadata({"k": 5})
    assert await versions(session) == [1, 2, 3]


@pytest.mark.parametrize("in_line", [0, 1])
async def test_one_that_waits_can_give_up(
    store: MetadataStore,
    hold: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    in_line: int,
) -> None:
    monkeypatch.setattr(store.log._writer.here._lanes, "_in_line", asyncio.Semaphore(in_line))
    (session,) = await prepare(store, "held")
    async with hold("head"):
        calls = start(*(session.set_metadata({f"k{n}": n}) for n in range(4)))
        await asyncio.sleep(0.2)
        calls[1].cancel()
        if not in_line:  # otherwise it may be waiting in the database
            await asyncio.wait([calls[1]], timeout=SOON)
            assert calls[1].cancelled()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    metadata = await session.get_metadata()
    assert {"k0", "k2", "k3"} <= metadata.keys()
    assert len(await versions(session)) == len(metadata) + 1


async def test_close_waits_for_what_is_held(
    server_backend: Backend, persistent_url: str, hold: Callable[[str], Any]
) -> None:
    store = MetadataStore.from_url(persistent_url)
    await store.create_tables()
    (session,) = await prepare(store, "held")
    async with hold("head"):
        calls = start(*(session.set_metadata({f"k{n}": n}) for n in range(3)))
        await asyncio.sleep(0.2)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
    await closing
    assert [call.result().version for call in calls] == [3, 4, 5]


async def test_too_many_for_one_session_wait_for_a_place_of_their_own(
    store: MetadataStore, hold: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_IN_LANE", 1)
    session, other = await prepare(store, "held", "other")
    async with hold("head"):
        calls = start(session.set_metadata({"n": 0}))
        await asyncio.sleep(0.2)
        calls += start(*(session.set_metadata({"n": n}) for n in range(1, 12)))
        calls[7].cancel()
        assert await seconds(other.set_metadata({"k": 1})) < SOON
    for n in range(12, 60):
        calls += start(session.set_metadata({"n": n}))
        await asyncio.sleep(0.002)
    await asyncio.gather(*calls, return_exceptions=True)
    changes = [entry.event.data["changes"] for entry in await session.history(after=2)]
    assert [value for ((_, value),) in changes] == [str(n) for n in range(60) if n != 7]


async def test_one_that_waits_for_a_place_as_its_session_is_found_to_be_held_keeps_its_order(
    store: MetadataStore, hold: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 2)
    session, other = await prepare(store, "held", "other")
    async with hold("head"):
        calls = start(session.set_metadata({"n": 0}), other.set_metadata({"n": 0}))
        calls += start(*(other.set_metadata({"n": n}) for n in range(1, 9)))
        calls += start(session.set_metadata({"n": 1}), session.set_metadata({"n": 2}))
        await calls[1]
        calls += start(session.set_metadata({"n": 3}))
        await asyncio.wait_for(asyncio.gather(*calls[2:10]), SOON)
    await asyncio.gather(*calls)
    changes = [entry.event.data["changes"] for entry in await session.history(after=2)]
    assert [value for ((_, value),) in changes] == ["0", "1", "2", "3"]
    assert await versions(other) == list(range(1, 12))


# --- Strangers ----------------------------------------------------------------------------------


def calls_of(store: MetadataStore, name: str, **options: Any) -> dict[str, Awaitable[Any]]:
    """What eve may try with a session."""
    session = store.as_user("eve").session(name)
    return {
        "set": session.set_metadata({"k": 1}, **options),
        "set, expecting": session.set_metadata({"k": 1}, expected_version=2, **options),
        "delete": session.delete_metadata(**options),
        "add": session.add_items([user("x")], **options),
        "pop": session.pop_item(**options),
        "clear": session.clear_session(**options),
        "transfer": session.transfer("eve's friend", **options),
    }


async def outcomes(calls: dict[str, Awaitable[Any]]) -> dict[str, str]:
    """How each ends, but for the names of sessions."""
    found: dict[str, str] = {}
    for name, call in calls.items():
        try:
            result = await call
        except EventMetaError as error:
            result = f"{type(error).__name__}: {error}"
        found[name] = str(result).replace("diary", "…").replace("missing", "…")
    return found


async def test_a_stranger_is_told_the_same_of_any_session(
    store: MetadataStore, hold: Callable[[str], Any]
) -> None:
    ann = store.session("diary", user_id="ann")
    await ann.set_metadata({"k": 0})
    missing = await outcomes(calls_of(store, "missing"))
    assert "SessionNotFound" in missing["set"]
    assert await outcomes(calls_of(store, "diary")) == missing
    async with hold(HOLDS["head"].replace("held", "diary")):
        begin = time.monotonic()
        assert await outcomes(calls_of(store, "diary")) == missing
        assert time.monotonic() - begin < SOON


async def test_a_stranger_locks_nothing(server_backend: Backend, store: MetadataStore) -> None:
    ann = store.session("diary", user_id="ann")
    await ann.set_metadata({"k": 0})
    async with store.engine.connect() as connection:
        await outcomes(calls_of(store, "diary", connection=connection))
        assert await seconds(ann.set_metadata({"k": 1}), ann.add_items([user("a")])) < SOON
        await outcomes(calls_of(store, "missing", connection=connection))
        new = store.session("missing", user_id="ann")
        assert await seconds(new.set_metadata({"k": 1}), ann.clear_session()) < SOON
        await connection.rollback()


# --- Nothing is left ----------------------------------------------------------------------------


def empty_calls(store: MetadataStore, **options: Any) -> dict[str, Awaitable[Any]]:
    """What the administrator may ask of what is not there, or is not as expected."""
    session, claiming = store.session("missing"), store.session("missing", user_id="eve")
    bare, person = store.session("bare"), store.user("nobody")
    return {
        "expecting": session.set_metadata({"k": 1}, expected_version=7, **options),
        "expecting items": session.add_items([user("x")], expected_version=7, **options),
        "expecting a claim": claiming.set_metadata({"k": 1}, expected_version=7, **options),
        "delete": session.delete_metadata(**options),
        "delete keys": session.delete_metadata(["k"], **options),
        "pop": session.pop_item(**options),
        "pop for a user": claiming.pop_item(**options),
        "clear": session.clear_session(**options),
        "clear items": session.clear_session(keep_metadata=True, **options),
        "clear for a user": claiming.clear_session(**options),
        "transfer": session.transfer("somebody", **options),
        "transfer, expecting": bare.transfer("somebody", expected_version=3, **options),
        "pop of nothing": bare.pop_item(**options),
        "claiming pop of nothing": store.session("bare", user_id="eve").pop_item(**options),
        "delete nothing": bare.delete_metadata(**options),
        "user": person.delete_metadata(**options),
        "user, expecting": person.set_metadata({"k": 1}, expected_version=2, **options),
    }


async def rows(store: MetadataStore) -> dict[str, int]:
    async with store.engine.connect() as connection:
        names = store.log.database.tables.metadata.tables
        return {
            name: (await connection.execute(text(f"SELECT count(*) FROM {name}"))).scalar_one()
            for name in names
        }


@pytest.mark.parametrize("within", [False, True], ids=["", "in a transaction"])
async def test_calls_that_come_to_nothing_leave_nothing(store: MetadataStore, within: bool) -> None:
    """Neither for a session that upstream's classes made, which has a row but no events."""
    await store.session("diary", user_id="ann").set_metadata({"k": 0})
    async with store.engine.begin() as connection:
        await connection.execute(text("INSERT INTO agent_sessions (session_id) VALUES ('bare')"))
    # MySQL's counter of positions is there from the first event on.
    before = await rows(store)
    if within:
        async with store.engine.begin() as connection:
            await outcomes(empty_calls(store, connection=connection))
            await outcomes(calls_of(store, "missing", connection=connection))
            await outcomes(calls_of(store, "diary", connection=connection))
    else:
        await outcomes(empty_calls(store))
        await outcomes(calls_of(store, "missing"))
        await outcomes(calls_of(store, "diary"))
        for result in await asyncio.gather(
            *empty_calls(store).values(), store.delete_user("nobody"), return_exceptions=True
        ):
            assert result is None or isinstance(result, EventMetaError)
    assert await rows(store) == before


async def test_together_with_calls_that_come_to_something_they_leave_nothing(
    store: MetadataStore,
) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(text("INSERT INTO agent_sessions (session_id) VALUES ('bare')"))
    bare, session = store.session("bare"), store.session("s")
    await asyncio.gather(
        bare.pop_item(),
        session.pop_item(),
        session.set_metadata({"k": 1}),
        session.delete_metadata(),
        store.session("t").delete_metadata(),
    )
    async with store.engine.connect() as connection:
        found = await connection.execute(
            text("SELECT stream_id, version FROM agent_streams WHERE stream_id <> ''")
        )
        assert [tuple(row) for row in found] == [("s", 2)]
