"""Several processes and engines on one database: nothing is lost, and versions have no holes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, VersionConflict, verify_projection
from tests.support.backends import Backend
from tests.support.helpers import user, versions
from tests.support.processes import race

PROCESSES = 4


@pytest.fixture
async def another_engine(url: str) -> AsyncIterator[Callable[[], AsyncEngine]]:
    """Makes engines as other processes would have them."""
    engines: list[AsyncEngine] = []

    def make() -> AsyncEngine:
        engines.append(create_async_engine(url))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.dispose()


def numbered(url: str, count: int = PROCESSES) -> list[tuple[str, str]]:
    return [(url, str(number)) for number in range(count)]


SET = """
from eventmeta import MetadataStore

async def main():
    async with MetadataStore.from_url(sys.argv[1]) as store:
        session = store.session("shared")
        await session.get_metadata()
        ready()
        for n in range(100):
            await session.set_metadata({f"k{sys.argv[2]}.{n}": n, "last": n})

asyncio.run(main())
"""


async def test_processes_write_to_one_session(persistent_url: str, store: MetadataStore) -> None:
    race(SET, *numbered(persistent_url))
    session = store.session("shared")
    assert await versions(session) == list(range(1, 100 * PROCESSES + 1))
    metadata = await session.get_metadata()
    assert len(metadata) == 100 * PROCESSES + 1
    assert metadata["last"] == 99
    positions = [event.position async for event in store.events()]
    assert len(positions) == 100 * PROCESSES
    assert await verify_projection(store) == []


CREATE = """
from eventmeta import MetadataStore

async def main():
    async with MetadataStore.from_url(sys.argv[1]) as store:
        ready()
        await store.create_tables()
        await store.session("s").set_metadata({sys.argv[2]: True})

asyncio.run(main())
"""


async def test_processes_create_the_tables_at_once(
    persistent_url: str, engine: AsyncEngine
) -> None:
    race(CREATE, *numbered(persistent_url))
    store = MetadataStore(engine)
    assert await versions(store.session("s")) == [1, 2, 3, 4]
    assert await store.session("s").get_metadata() == {str(n): True for n in range(PROCESSES)}


async def test_sessions_create_the_tables_at_once(engine: AsyncEngine) -> None:
    sessions = [MetadataSession(f"s{n}", engine=engine, create_tables=True) for n in range(8)]
    await asyncio.gather(*(session.set_metadata({"k": 1}) for session in sessions))
    assert [await session.get_metadata() for session in sessions] == [{"k": 1}] * 8


# --- One version, one winner ---------------------------------------------------------------------


async def check_race(session: MetadataSession, results: list[Any]) -> None:
    conflicts = [result for result in results if isinstance(result, VersionConflict)]
    assert len(results) - len(conflicts) == 1
    assert {(error.expected, error.actual) for error in conflicts} == {(1, 2)}
    assert await versions(session) == [1, 2]
    assert (await session.get_metadata())["won"] in range(8)


async def test_one_of_eight_racers_wins(store: MetadataStore) -> None:
    session = store.session("s")
    await session.set_metadata({"start": True})
    calls = [session.set_metadata({"won": n}, expected_version=1) for n in range(8)]
    await check_race(session, await asyncio.gather(*calls, return_exceptions=True))


async def test_one_of_eight_racers_wins_who_have_writers_of_their_own(
    persistent_url: str, store: MetadataStore, another_engine: Callable[[], AsyncEngine]
) -> None:
    session = store.session("s")
    await session.set_metadata({"start": True})
    racers = [MetadataSession("s", engine=another_engine()) for _ in range(8)]
    await asyncio.gather(*(racer.get_metadata() for racer in racers))
    calls = [racer.set_metadata({"won": n}, expected_version=1) for n, racer in enumerate(racers)]
    await check_race(session, await asyncio.gather(*calls, return_exceptions=True))


EXPECT = """
from eventmeta import MetadataStore, VersionConflict

async def run(store):
    session = store.session("s")
    for n in range(10):
        try:
            await session.set_metadata({"won": sys.argv[2]}, expected_version=n)
            print(n)
        except VersionConflict as error:
            assert error.expected == n < error.actual, error
        while len(await session.history()) <= n:
            await asyncio.sleep(0)

async def main():
    stores = [MetadataStore.from_url(sys.argv[1]) for _ in range(2)]
    for store in stores:
        await store.horizon()
    ready()
    await asyncio.gather(*map(run, stores))
    for store in stores:
        await store.close()

asyncio.run(main())
"""


async def test_one_of_eight_racers_in_four_processes_wins(
    persistent_url: str, store: MetadataStore
) -> None:
    """Ten rounds: nobody is in the next before this one has its winner."""
    won = race(EXPECT, *numbered(persistent_url))
    rounds = Counter(int(number) for output in won for number in output.split())
    assert rounds == dict.fromkeys(range(10), 1)
    assert await versions(store.session("s")) == list(range(1, 11))


# --- Lock order ----------------------------------------------------------------------------------

OPPOSITE = """
from eventmeta import MetadataStore

async def main():
    async with MetadataStore.from_url(sys.argv[1]) as store:
        sessions = [store.session(f"s{n:02}") for n in range(30)]
        chatty = sessions[::3]
        if sys.argv[2] == "1":
            sessions.reverse()
            chatty.reverse()
        await sessions[0].get_metadata()
        ready()
        for n in range(10):
            await asyncio.gather(
                *(session.set_metadata({"k": n, sys.argv[2]: n}) for session in sessions),
                *(session.add_items([{"role": "user", "content": "x"}]) for session in chatty),
                *(session.delete_metadata(["k"]) for session in sessions[1::3]),
            )

asyncio.run(main())
"""


async def test_batches_in_opposite_orders_do_not_deadlock(
    persistent_url: str, store: MetadataStore
) -> None:
    race(OPPOSITE, *numbered(persistent_url, 2))
    for n in range(30):
        session = store.session(f"s{n:02}")
        metadata = await session.get_metadata(["0", "1"])
        assert metadata == {"0": 9, "1": 9}
        found = await versions(session)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 20
        assert len(await session.get_items()) == (20 if n % 3 == 0 else 0)
    assert await verify_projection(store) == []


async def test_clearing_and_writing_at_once(
    persistent_url: str, store: MetadataStore, another_engine: Callable[[], AsyncEngine]
) -> None:
    """The session's row goes and comes under the feet of other writers."""
    stores = [MetadataStore(another_engine()) for _ in range(3)]

    async def work(own: MetadataStore, n: int) -> None:
        session = own.session("s")
        for _ in range(10):
            await session.set_metadata({f"k{n}": n})
            await session.add_items([user(str(n))])
            await (session.clear_session() if n == 0 else session.pop_item())

    await asyncio.gather(*(work(own, n) for n, own in enumerate(stores)))
    session = store.session("s")
    found = await versions(session)
    assert found == list(range(1, len(found) + 1))
    added, gone = Counter[int](), Counter[int]()
    async for event in store.events():
        added.update(event.data.get("item_ids", ()) if event.type == "items_added" else ())
        gone.update(event.data.get("item_ids", ()) if event.type == "session_cleared" else ())
        gone.update([event.data["item_id"]] if event.type == "item_popped" else ())
    assert set(gone.values()) <= {1}, "no item is removed twice"
    assert gone <= added
    assert len(await session.get_items()) == len(added) - len(gone)
    assert await verify_projection(store) == []


# --- Beside upstream -----------------------------------------------------------------------------


async def test_upstream_writes_to_the_same_session_at_the_same_time(
    persistent_url: str, store: MetadataStore, another_engine: Callable[[], AsyncEngine]
) -> None:
    ours = store.session("s")
    theirs = SQLAlchemySession("s", engine=another_engine(), create_tables=False)

    async def add(session: Any, who: str) -> None:
        for n in range(40):
            await session.add_items([user(f"{who} {n}.1"), user(f"{who} {n}.2")])

    async def describe() -> None:
        for n in range(40):
            await ours.set_metadata({f"k{n}": n})

    await asyncio.gather(add(ours, "ours"), add(theirs, "theirs"), describe())
    items: list[Any] = await theirs.get_items()
    assert items == await ours.get_items()
    contents = [entry["content"] for entry in items]
    for who in ("ours", "theirs"):
        expected = [f"{who} {n}.{i}" for n in range(40) for i in (1, 2)]
        assert [content for content in contents if content.startswith(who)] == expected
    assert len(await ours.get_metadata()) == 40
    assert await versions(ours) == list(range(1, 81))
    own_ids = [
        item_id
        async for event in store.events(types=["items_added"])
        for item_id in event.data["item_ids"]
    ]
    async with store.engine.connect() as connection:
        found = await connection.execute(
            text("SELECT id FROM agent_messages WHERE message_data LIKE '%ours%' ORDER BY id")
        )
        assert own_ids == [row[0] for row in found], "the events name the rows that we wrote"


async def test_upstream_pops_while_we_pop(
    persistent_url: str, store: MetadataStore, another_engine: Callable[[], AsyncEngine]
) -> None:
    ours = store.session("s")
    theirs = SQLAlchemySession("s", engine=another_engine(), create_tables=False)
    await ours.add_items([user(str(n)) for n in range(40)])

    async def pop(session: Any) -> list[Any]:
        return [await session.pop_item() for _ in range(20)]

    popped = await asyncio.gather(pop(ours), pop(theirs))
    assert sorted(map(str, popped[0] + popped[1])) == sorted(str(user(str(n))) for n in range(40))
    assert await ours.get_items() == []


# --- A session that is held ----------------------------------------------------------------------


async def test_a_held_session_does_not_hold_others_up(
    server_backend: Backend, store: MetadataStore
) -> None:
    """Also where there are so few that a planner may prefer to read them all."""
    held, free = store.session("held"), store.session("free")
    await asyncio.gather(held.set_metadata({"k": 0}), free.set_metadata({"k": 0}))
    async with store.engine.begin() as connection:
        await connection.execute(
            text(
                "SELECT version FROM agent_streams "
                "WHERE stream_id = 'held' AND stream_type = 'session' FOR UPDATE"
            )
        )
        writing = asyncio.create_task(free.set_metadata({"k": 1}))
        done, _ = await asyncio.wait([writing], timeout=2)
    await writing
    assert done
    await held.set_metadata({"k": 1})
