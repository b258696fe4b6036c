"""Subscriptions: the log, followed live by one reader of a name at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import InvalidInput, LeaseLost, MetadataStore, NewEvent
from eventmeta.database import event_reading as log_module
from eventmeta.projector import checkpoints, subscription
from eventmeta.projector.checkpoints import LEASE_MS
from tests.support.backends import Backend
from tests.support.helpers import users
from tests.support.sample_projections import log_of, noted


async def fill(store: MetadataStore, count: int) -> list[int]:
    events = [await store.append(f"s{n % 3}", noted(n)) for n in range(count)]
    return [event.position for event in events]


async def positions(store: MetadataStore) -> list[int]:
    return [event.position for event in await log_of(store)]


class Reader:
    """A subscription that is read in a task."""

    def __init__(self, store: MetadataStore, name: str = "mailer", **options: Any) -> None:
        self.seen: list[int] = []
        self._events = store.subscribe(name, **options)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                self.seen.append(event.position)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.seen) < count and not self.task.done():
                await asyncio.sleep(0.005)
        assert len(self.seen) >= count

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def reader(store: MetadataStore) -> AsyncIterator[Reader]:
    reader = Reader(store)
    yield reader
    if not reader.task.done():
        await reader.stop()


# --- Following ----------------------------------------------------------------------------------


async def test_what_is_there_and_then_what_comes(store: MetadataStore) -> None:
    await fill(store, 4)
    reader = Reader(store)
    await reader.until(4)
    await fill(store, 3)
    await store.session("s").add_items(users("hello"))
    await reader.until(8)
    assert reader.seen == await positions(store)
    await reader.stop()


async def test_it_goes_on_where_it_ended(store: MetadataStore) -> None:
    """What was handled does not come again: the position is kept when a reader leaves."""
    await fill(store, 5)
    first = Reader(store)
    await first.until(5)
    await first.stop()
    await fill(store, 5)
    second = Reader(store)
    await second.until(5)
    await second.stop()
    assert first.seen + second.seen == await positions(store)
    other = Reader(store, "another name")
    with pytest.raises(InvalidInput):
        await other.task
    other = Reader(store, "another.name", after=first.seen[-1])
    await other.until(5)
    assert other.seen == second.seen
    await other.stop()


async def test_what_was_not_handled_comes_again(store: MetadataStore) -> None:
    """An event counts as handled when the next one is asked for."""
    await fill(store, 5)
    expected = await positions(store)
    async with aclosing(store.subscribe("mailer")) as events:
        assert [(await anext(events)).position for _ in range(3)] == expected[:3]
    async with aclosing(store.subscribe("mailer")) as events:
        assert (await anext(events)).position == expected[2]

    async def fail_at(position: int) -> None:
        async with aclosing(store.subscribe("mailer")) as events:
            async for event in events:
                if event.position == position:
                    raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        await fail_at(expected[3])
    reader = Reader(store)
    await reader.until(2)
    assert reader.seen == expected[3:]
    await reader.stop()


async def test_it_is_told_of_chosen_types_only(store: MetadataStore) -> None:
    for n in range(6):
        await store.append("s", NewEvent("rare" if n % 3 == 0 else "common"))
    reader = Reader(store, types=["rare", "never"])
    await reader.until(2)
    await reader.stop()
    rare = [event.position for event in await log_of(store) if event.type == "rare"]
    assert reader.seen == rare
    assert await saved(store) == (await positions(store))[-1], "what it left out is behind it"


async def saved(store: MetadataStore, name: str = "mailer") -> int:
    async with store.engine.connect() as connection:
        query = "SELECT position FROM agent_checkpoints WHERE projection = :name"
        found = await connection.scalar(text(query + " AND state = 'subscription'"), {"name": name})
        return int(found or 0)


async def test_a_low_position_held_open_is_not_skipped(
    postgresql_backend: Backend, store: MetadataStore, reader: Reader
) -> None:
    before = await fill(store, 2)
    await reader.until(2)
    async with store.engine.connect() as connection:
        low = await store.append("low", noted(), connection=connection)
        high = await store.append("high", noted())
        await asyncio.sleep(0.1)
        assert reader.seen == before
        await connection.commit()
    await reader.until(4)
    assert reader.seen == [*before, low.position, high.position]


async def test_many_writers_beside_it(
    persistent_backend: Backend, store: MetadataStore, url: str, reader: Reader
) -> None:
    engine = create_async_engine(url)
    other = MetadataStore(engine)

    async def write(store: MetadataStore, name: str) -> None:
        for n in range(15):
            await asyncio.gather(*(store.append(f"{name}{i}", noted(n)) for i in range(3)))

    await asyncio.gather(write(store, "a"), write(other, "b"))
    await reader.until(90)
    assert reader.seen == await positions(store)
    await engine.dispose()


# --- How it waits -------------------------------------------------------------------------------


async def test_a_writer_of_its_process_wakes_it_up(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at the log for each write: nothing else is waited for, nor polled for."""
    monkeypatch.setattr(subscription, "MIN_POLL", 60.0)
    monkeypatch.setattr(checkpoints, "LEASE_MS", 600_000)
    looks: list[None] = []
    wait = store.log.appended.wait

    async def counted(seen: int, seconds: float) -> None:
        looks.append(None)
        await wait(seen, seconds)

    monkeypatch.setattr(store.log.appended, "wait", counted)
    reader = Reader(store, max_poll=60.0)
    for n in range(1, 6):
        await fill(store, 1)
        await reader.until(n)
        await asyncio.sleep(0.05)
    assert len(looks) in (5, 6), "the first write may have come before the first look"
    await reader.stop()


async def test_it_looks_less_often_when_nothing_comes(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    wait = store.log.appended.wait

    async def noticed(seen: int, seconds: float) -> None:
        pauses.append(seconds)
        await wait(seen, 0.001)

    monkeypatch.setattr(store.log.appended, "wait", noticed)
    reader = Reader(store, max_poll=500.0)
    while len(pauses) < 15:
        await asyncio.sleep(0.01)
    assert pauses[:4] == [0.02, 0.04, 0.08, 0.16]
    assert max(pauses) <= LEASE_MS / 3_000, "or its lease would end meanwhile"
    await reader.stop()


async def test_its_memory_is_bounded(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads a page when the one before has been handled."""
    monkeypatch.setattr(log_module, "PAGE", 4)
    await fill(store, 11)
    fetched: list[int] = []
    read = store.log.database.dialect.read

    async def noticed(queries: Any) -> Any:
        found = await read(queries)
        fetched.append(len(found[0]) if len(found[0]) and len(found[0][0]) == 10 else 0)
        return found

    monkeypatch.setattr(store.log.database.dialect, "read", noticed)
    handled = 0
    async with aclosing(store.subscribe("mailer")) as events:
        async for _ in events:
            handled += 1
            assert handled <= sum(fetched) < handled + 4
            if handled == 11:
                break


# --- One reader of a name -----------------------------------------------------------------------


async def test_only_one_reads_at_a_time(store: MetadataStore) -> None:
    await fill(store, 3)
    first, second = Reader(store), Reader(store)
    other = Reader(store, "other")
    await other.until(3)
    while not (first.seen or second.seen):
        await asyncio.sleep(0.005)
    one, two = (first, second) if first.seen else (second, first)
    await one.until(3)
    await fill(store, 2)
    await one.until(5)
    assert two.seen == []
    await one.stop()
    await fill(store, 2)
    await two.until(2)
    assert one.seen + two.seen == await positions(store)
    await two.stop()
    await other.stop()


async def test_whoever_is_away_for_long_loses_the_lease(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SAVE_SECONDS", 0.0)
    await fill(store, 6)
    expected = await positions(store)
    async with aclosing(store.subscribe("mailer")) as events:
        first = [(await anext(events)).position for _ in range(3)]
        async with store.engine.begin() as connection:
            await connection.execute(text("UPDATE agent_checkpoints SET expires_at = 0"))
        second = Reader(store)
        await second.until(1)
        with pytest.raises(LeaseLost) as lost:
            await anext(events)
        assert lost.value.projection == "mailer"
    assert first == expected[:3]
    await second.until(4)
    assert second.seen == expected[2:], "what it had not been known to handle comes again"
    await second.stop()


async def test_a_crashed_reader_is_taken_over_where_it_last_saved(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once: nothing of what it may not have handled is left out."""
    await fill(store, 4)
    expected = await positions(store)
    crashed = store.subscribe("mailer")
    assert [(await anext(crashed)).position for _ in range(3)] == expected[:3]
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE agent_checkpoints SET expires_at = 0"))
    reader = Reader(store)
    await reader.until(4)
    assert reader.seen == expected
    await reader.stop()
    await crashed.aclose()
    assert await saved(store) == expected[-1], "the one who comes too late changes nothing"


async def test_leaving_at_any_time_leaves_no_lease(store: MetadataStore) -> None:
    await fill(store, 3)
    for turns in range(0, 60, 3):
        reader = Reader(store)
        for _ in range(turns):
            await asyncio.sleep(0)
        await reader.stop()
        async with store.engine.connect() as connection:
            left = text("SELECT count(*) FROM agent_checkpoints WHERE holder IS NOT NULL")
            assert await connection.scalar(left) == 0


async def test_bad_input_is_told_before_any_io() -> None:
    store = MetadataStore(create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing"))
    bad: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "Mailer"},
        {"name": 7},
        {"name": "mailer", "after": -1},
        {"name": "mailer", "after": True},
        {"name": "mailer", "types": "noted"},
        {"name": "mailer", "types": ["Noted"]},
        {"name": "mailer", "max_poll": 0},
        {"name": "mailer", "max_poll": float("nan")},
    ]
    for options in bad:
        with pytest.raises(InvalidInput):
            await anext(store.subscribe(**options))
