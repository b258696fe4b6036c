"""Group commit, and that no command is harmed by its neighbours or by a lost connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    DatabaseRefused,
    EventIdReused,
    MetadataStore,
    NewEvent,
    StoreClosed,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from eventmeta.core.deadline import Limits
from eventmeta.log import writer
from eventmeta.log.commands import Command
from tests.support.backends import Backend
from tests.support.helpers import count_transactions, refuse, user, versions


class Batches:
    """The batches that reach the log; each waits until the gate is open."""

    def __init__(self, store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.gate = asyncio.Event()
        self.waiting = asyncio.Event()
        self._commit = store._log.appender.commit
        monkeypatch.setattr(store._log.appender, "commit", self._pass)

    async def _pass(
        self, commands: Sequence[Command], limits: Limits, *, waits: bool = False
    ) -> list[Any]:
        self.sizes.append(len(commands))
        self.waiting.set()
        await self.gate.wait()
        return await self._commit(commands, limits, waits=waits)

    async def hold(self, store: MetadataStore) -> asyncio.Task[Any]:
        """Have one write wait at the gate, so that those that come next gather behind it."""
        first = asyncio.create_task(store.session("held").set_metadata({"first": True}))
        await self.waiting.wait()
        return first


@pytest.fixture
def batches(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(store, monkeypatch)


async def turns(count: int = 20) -> None:
    """Let every task run until it waits for something other than a turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def together(batches: Batches, store: MetadataStore, *calls: Awaitable[Any]) -> list[Any]:
    """The results of ``calls``, or what they raise, all made while another write commits."""
    first = await batches.hold(store)
    tasks = [asyncio.ensure_future(call) for call in calls]
    await turns()
    batches.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    return results


# --- Batches ------------------------------------------------------------------------------------


async def test_callers_at_the_same_time_share_a_transaction(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = count_transactions(store, monkeypatch)
    calls = [store.session(f"s{n % 50}").set_metadata({f"k{n}": n}) for n in range(200)]
    events = await together(batches, store, *calls)
    assert batches.sizes == [1, 200]
    assert len(begun) == 2
    assert len({event.position for event in events}) == 200
    for n in range(200):
        assert (await store.session(f"s{n % 50}").get_metadata([f"k{n}"])) == {f"k{n}": n}


async def test_different_commands_share_a_transaction(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [store.session(f"s{n}") for n in range(5)]
    begun = count_transactions(store, monkeypatch)
    calls: list[Awaitable[Any]] = [session.set_metadata({"k": 1}) for session in sessions]
    calls += [session.add_items([user("a"), user("b")]) for session in sessions]
    calls += [session.pop_item() for session in sessions]
    calls += [session.delete_metadata(["k"]) for session in sessions]
    calls += [store.append(session.session_id, NewEvent("noted")) for session in sessions]
    results = await together(batches, store, *calls)
    assert not [result for result in results if isinstance(result, BaseException)]
    assert len(begun) == 2
    for session in sessions:
        assert await versions(session) == [1, 2, 3, 4, 5]
        assert await session.get_items() == [user("a")]
        assert await session.get_metadata() == {}
    assert results[10:15] == [user("b")] * 5


async def test_a_lone_caller_waits_for_no_one(store: MetadataStore, batches: Batches) -> None:
    batches.gate.set()
    for n in range(3):
        await store.session("s").set_metadata({"k": n})
    assert batches.sizes == [1, 1, 1]


@pytest.mark.parametrize(
    ("limit", "value", "largest"), [("MAX_BATCH", 10, 10), ("MAX_BATCH_BYTES", 5_000, 2)]
)
async def test_a_batch_has_its_limits(
    store: MetadataStore,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    largest: int,
) -> None:
    monkeypatch.setattr(writer, limit, value)
    calls = [store.session(f"s{n}").set_metadata({"k": "x" * 1_500}) for n in range(25)]
    await together(batches, store, *calls)
    assert max(batches.sizes) == largest
    assert sum(batches.sizes) == 26


async def test_a_command_over_the_limit_goes_alone(store: MetadataStore, batches: Batches) -> None:
    session = store.session("s")
    large = "x" * (writer.MAX_BATCH_BYTES // 4)
    calls = [
        session.set_metadata({"a": 1}),
        session.set_metadata({f"k{n}": large for n in range(5)}),
        session.set_metadata({"a": 2}),
    ]
    await together(batches, store, *calls)
    assert batches.sizes == [1, 1, 1, 1]
    assert await session.get_metadata(["a", "k4"]) == {"a": 2, "k4": large}


async def test_a_session_keeps_the_order_of_its_calls(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_BATCH", 7)
    session, other = store.session("s"), store.session("o")

    async def call(n: int) -> None:
        if n % 5 == 4:
            await session.delete_metadata([f"k{n - 1}"])
        elif n % 5 == 2:
            await session.add_items([user(str(n))])
        else:
            await session.set_metadata({f"k{n}": n, "last": n})
        await other.set_metadata({"n": n})

    await together(batches, store, *(call(n) for n in range(60)))
    entries = await session.history()
    assert [entry.event.version for entry in entries] == list(range(1, 61))
    types = ["metadata_set", "metadata_set", "items_added", "metadata_set", "metadata_deleted"]
    assert [entry.event.type for entry in entries] == types * 12
    assert (await session.get_metadata(["last"])) == {"last": 58}
    assert await session.get_items() == [user(str(n)) for n in range(2, 60, 5)]


# --- Neighbours ---------------------------------------------------------------------------------


async def test_a_bad_command_harms_no_other(
    backend: Backend, engine: AsyncEngine, store: MetadataStore, batches: Batches
) -> None:
    await refuse(engine, backend)
    session, used = store.session("s"), new_event_id()
    results = await together(
        batches,
        store,
        session.set_metadata({"before": 1}, event_id=used),
        session.set_metadata({"stale": 1}, expected_version=7),
        session.set_metadata({"reused": 1}, event_id=used),
        session.add_items([user("kept")]),
        store.append("s", NewEvent("refused")),
        store.session("t").set_metadata({"neighbour": 1}),
        session.set_metadata({"after": 1}, expected_version=2),
        store.append("t", NewEvent("refused")),
    )
    kinds = [type(result) for result in results]
    assert kinds[1:3] == [VersionConflict, EventIdReused]
    assert (results[1].expected, results[1].actual) == (7, 1)
    assert (kinds[4], kinds[7]) == (DatabaseRefused, DatabaseRefused)
    assert "not in this database" in str(results[4])
    assert await session.get_metadata() == {"before": 1, "after": 1}
    assert await session.get_items() == [user("kept")]
    assert await store.session("t").get_metadata() == {"neighbour": 1}
    assert await versions(session) == [1, 2, 3]
    assert await versions(store.session("t")) == [1]
    assert await verify_projection(store) == []


@pytest.mark.parametrize("name", ["add", "set", "append"])
async def test_the_same_event_id_twice_in_a_batch_is_one_event(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    session, event_id = store.session("s"), new_event_id()

    def call() -> Awaitable[Any]:
        match name:
            case "add":
                return session.add_items([user("once")], event_id=event_id)
            case "set":
                return session.set_metadata({"once": 1}, event_id=event_id)
        return store.append("s", NewEvent("noted", event_id=event_id))

    begun = count_transactions(store, monkeypatch)
    events = await together(batches, store, *(call() for _ in range(4)))
    assert len(begun) == 2, "the one that holds the others up, and theirs"
    assert events == [events[0]] * 4
    assert [found async for found in store.events(stream="s")] == events[:1]
    assert await session.get_items() == [user("once")] * (name == "add")


# --- Back-pressure and the end ------------------------------------------------------------------


async def test_too_many_callers_wait_for_a_place(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 3)
    calls = [store.session("s").set_metadata({f"k{n}": n}) for n in range(10)]
    await together(batches, store, *calls)
    assert max(batches.sizes) == 2, "one in the gate and two behind it"
    assert list(await store.session("s").get_metadata()) == [f"k{n}" for n in range(10)]
    assert await versions(store.session("s")) == list(range(1, 11))


async def test_a_caller_that_waits_for_a_place_can_give_up(
    store: MetadataStore, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 1)
    first = await batches.hold(store)
    session = store.session("s")
    tasks = [asyncio.create_task(session.set_metadata({f"k{n}": n})) for n in range(4)]
    await turns()
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    batches.gate.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    assert list(await session.get_metadata()) == ["k0", "k2", "k3"]


@pytest.mark.parametrize("owned", [False, True], ids=["engine passed in", "engine of its own"])
async def test_close_carries_out_what_was_submitted(
    engine: AsyncEngine, persistent_url: str, monkeypatch: pytest.MonkeyPatch, owned: bool
) -> None:
    store = MetadataStore.from_url(persistent_url) if owned else MetadataStore(engine)
    await store.create_tables()
    batches, session = Batches(store, monkeypatch), store.session("s")
    first = await batches.hold(store)
    tasks = [asyncio.create_task(session.set_metadata({f"k{n}": n})) for n in range(5)]
    await turns()
    closing = asyncio.create_task(store.close())
    await turns()
    assert not closing.done()
    with pytest.raises(StoreClosed):
        await store.append("s", NewEvent("late"))
    batches.gate.set()
    await closing
    assert first.done()
    assert all(task.done() for task in tasks)
    await store.close()
    if owned:
        with pytest.raises(StoreClosed):
            await session.set_metadata({"late": True})
    else:
        await session.set_metadata({"k5": 5})
    again = MetadataStore(engine).session("s")
    assert list(await again.get_metadata()) == [f"k{n}" for n in range(5 if owned else 6)]
    await again.set_metadata({"reopened": True})


FOLLOWED: dict[str, Callable[[MetadataStore], AsyncIterator[Any]]] = {
    "events": lambda store: store.events(),
    "subscribe": lambda store: store.subscribe("name", max_poll=0.01),
    "arrow_batches": lambda store: store.arrow_batches(),
}


@pytest.mark.parametrize("followed", FOLLOWED.values(), ids=list(FOLLOWED))
async def test_what_is_being_read_ends_with_the_store(
    store: MetadataStore,
    monkeypatch: pytest.MonkeyPatch,
    followed: Callable[[MetadataStore], AsyncIterator[Any]],
) -> None:
    monkeypatch.setattr("eventmeta.log.arrow.WINDOW", 1)
    for n in range(2):
        await store.append("s", NewEvent("noted", {"n": n}))
    reading = followed(store)
    await anext(reading)
    await store.close()
    with pytest.raises(StoreClosed):
        await anext(reading)
    with pytest.raises(StopAsyncIteration):
        await anext(reading)


async def test_a_subscription_ends_with_the_engine_of_its_store(persistent_url: str) -> None:
    store = MetadataStore.from_url(persistent_url)
    await store.create_tables()
    await store.append("s", NewEvent("noted"))
    reading = store.subscribe("name", max_poll=0.01)
    await anext(reading)
    waiting = asyncio.create_task(anext(reading))
    await asyncio.sleep(0.1)
    await store.close()
    with pytest.raises(StoreClosed):
        await waiting
    await store.engine.dispose()
