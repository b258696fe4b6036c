"""The feed never skips an event and never repeats one, whatever is being written meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import DatabaseBusy, MetadataStore, NewEvent
from tests.support.backends import Backend
from tests.support.processes import race


class Reader:
    """Reads the log in turns, each from where the last one ended."""

    def __init__(self, store: MetadataStore) -> None:
        self.store = store
        self.seen: list[str] = []
        self.positions: list[int] = []

    async def poll(self) -> None:
        after = self.positions[-1] if self.positions else 0
        async for event in self.store.events(after):
            self.seen.append(event.event_id)
            self.positions.append(event.position)


class Checkpoint(Reader):
    """The same, but goes on from the horizon, as a projection does that keeps a checkpoint."""

    checkpoint = 0

    async def poll(self) -> None:
        horizon = await self.store.horizon()
        assert horizon >= self.checkpoint, "the horizon never goes back"
        async for event in self.store.events(self.checkpoint, until=horizon):
            self.seen.append(event.event_id)
            self.positions.append(event.position)
        self.checkpoint = horizon


class Naive:
    """Reads what has a higher number than the last row seen, as one would do at first."""

    def __init__(self, engine: AsyncEngine, table: str, number: str) -> None:
        self.engine = engine
        self.query = f"SELECT {number} FROM {table} WHERE {number} > :last ORDER BY {number}"
        self.all = f"SELECT {number} FROM {table} ORDER BY {number}"
        self.seen: list[int] = []

    async def poll(self) -> None:
        async with self.engine.connect() as connection:
            last = self.seen[-1] if self.seen else 0
            self.seen += await connection.scalars(text(self.query), {"last": last})

    async def missed(self) -> set[int]:
        async with self.engine.connect() as connection:
            return set(await connection.scalars(text(self.all))) - set(self.seen)


async def recorded(store: MetadataStore) -> list[str]:
    """The ids of all events there are, read when no one writes."""
    async with store.engine.connect() as connection:
        query = "SELECT event_id FROM agent_events ORDER BY position"
        return [str(event_id) for event_id in await connection.scalars(text(query))]


async def poll(*readers: Reader | Naive) -> None:
    for reader in readers:
        await reader.poll()


async def check(store: MetadataStore, *readers: Reader) -> None:
    """Each reader has seen each event once, in order."""
    await poll(*readers)
    for reader in readers:
        assert len(set(reader.seen)) == len(reader.seen), "repeated"
        assert reader.seen == await recorded(store), "skipped"
        assert reader.positions == sorted(reader.positions)


# --- One interleaving, step by step --------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("earlier", [0, 1])
async def test_a_low_position_held_open(
    server_backend: Backend,
    store: MetadataStore,
    another_store: Callable[[], MetadataStore],
    ends: str,
    earlier: int,
) -> None:
    """The naive reader loses it on a table that draws its numbers in the usual way."""
    for n in range(earlier):
        await store.append("s", NewEvent("earlier", {"n": n}))
    columns = {"postgresql": "id SERIAL", "mariadb": "id INTEGER AUTO_INCREMENT PRIMARY KEY"}
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql(
            f"CREATE TABLE naive ({columns[server_backend.name]}, who INTEGER)"
        )
    other, naive = another_store(), Naive(store.engine, "naive", "id")
    readers: list[Reader] = [Reader(store), Checkpoint(store)]
    async with store.engine.connect() as connection:
        low = await store.append("low", NewEvent("held"), connection=connection)
        await connection.exec_driver_sql("INSERT INTO naive (who) VALUES (1)")
        # They pass on PostgreSQL; on MariaDB, they wait for the first.
        passing = [
            asyncio.create_task(other.append(f"high{n}", NewEvent("passed"))) for n in range(3)
        ]
        if server_backend.name == "postgresql":
            await asyncio.wait(passing)
        async with other.engine.begin() as second:
            await second.exec_driver_sql("INSERT INTO naive (who) VALUES (2)")
        for _ in range(3):
            await poll(naive, *readers)
            assert await store.horizon() < low.position
        await (connection.commit() if ends == "commit" else connection.rollback())
    highest = max([event.position for event in await asyncio.gather(*passing)])
    await naive.poll()
    assert await naive.missed() == ({1} if ends == "commit" else set())
    await check(store, *readers)
    assert len(readers[0].seen) == earlier + (4 if ends == "commit" else 3)
    assert await store.horizon() == highest


@pytest.mark.usefixtures("postgresql_backend")
async def test_polling_the_log_naively_loses_events(store: MetadataStore) -> None:
    """On PostgreSQL, where positions become visible out of order."""
    naive, ours = Naive(store.engine, "agent_events", "position"), Reader(store)
    async with store.engine.connect() as connection:
        low = await store.append("low", NewEvent("held"), connection=connection)
        high = await store.append("high", NewEvent("passed"))
        await poll(naive, ours)
        await connection.commit()
    await naive.poll()
    assert naive.seen == [high.position]
    assert await naive.missed() == {low.position}
    await check(store, ours)


async def test_the_horizon_of_an_empty_log_is_zero(store: MetadataStore) -> None:
    assert await store.horizon() == 0
    assert [event async for event in store.events()] == []


# --- Many writers --------------------------------------------------------------------------------


async def write_at_random(store: MetadataStore, seed: int) -> int:
    """Appends by the writer and in transactions of our own, some rolled back; how many last."""
    choose, lasting = random.Random(seed), 0
    for n in range(40):
        session = f"s{choose.randrange(6)}" if choose.random() < 0.3 else f"own{seed}"
        match choose.choice(["writer", "several", "commit", "rollback"]):
            case "writer":
                await store.append(session, NewEvent("noted", {"n": n}))
                lasting += 1
            case "several":
                calls = [store.append(f"own{seed}.{i}", NewEvent("noted")) for i in range(3)]
                await asyncio.gather(*calls)
                lasting += 3
            case ends:
                lasting += await within_transaction(store, f"own{seed}", ends, choose)
    return lasting


async def within_transaction(
    store: MetadataStore, session: str, ends: str, choose: random.Random
) -> int:
    count = choose.randrange(1, 3)
    async with store.engine.connect() as connection:
        for _ in range(count):
            try:
                await store.append(session, NewEvent("noted"), connection=connection)
            except DatabaseBusy:  # a deadlock, which ends the whole transaction
                return 0
            await asyncio.sleep(choose.choice([0, 0.001, 0.005]))
        await (connection.commit() if ends == "commit" else connection.rollback())
    return count if ends == "commit" else 0


async def test_many_writers_and_rollbacks_at_random(
    persistent_backend: Backend,
    store: MetadataStore,
    another_store: Callable[[], MetadataStore],
) -> None:
    readers = [Reader(store), Checkpoint(store)]
    writing = asyncio.gather(*(write_at_random(another_store(), seed) for seed in range(4)))
    while not writing.done():
        await poll(*readers)
        await asyncio.sleep(0)
    lasting = sum(await writing)
    await check(store, *readers)
    assert len(readers[0].seen) == lasting > 100


WRITE = """
from eventmeta import MetadataStore, NewEvent

async def main():
    store = MetadataStore.from_url(sys.argv[1])
    await store.horizon()
    ready()
    for n in range(60):
        streams = [f"{sys.argv[2]}.{i}" for i in range(2)]
        await asyncio.gather(*(store.append(stream, NewEvent("noted")) for stream in streams))
    await store.close()

asyncio.run(main())
"""


async def test_writers_in_several_processes(persistent_url: str, store: MetadataStore) -> None:
    readers = [Reader(store), Checkpoint(store)]
    racing = asyncio.create_task(
        asyncio.to_thread(race, WRITE, *((persistent_url, str(n)) for n in range(3)))
    )
    while not racing.done():
        await poll(*readers)
        await asyncio.sleep(0)
    await racing
    await check(store, *readers)
    assert len(readers[0].seen) == 360


async def test_the_feed_goes_on_while_a_long_transaction_is_open(
    server_backend: Backend,
    store: MetadataStore,
    another_store: Callable[[], MetadataStore],
) -> None:
    """Other transactions that write no events hold nothing up."""
    async with another_store().engine.begin() as connection:
        await connection.execute(text("SELECT count(*) FROM agent_events"))
        await connection.execute(text("CREATE TEMPORARY TABLE own (id INTEGER)"))
        event = await store.append("s", NewEvent("noted"))
        assert await store.horizon() == event.position
        assert [found.position async for found in store.events()] == [event.position]
