"""Structured tables for items that are older than they are, and beside other writers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmeta import (
    Backfill,
    InvalidInput,
    MetadataSession,
    MetadataStore,
    StructuredMetadataOff,
    acting_as,
    backfill_conversations,
    verify_projection,
)
from eventmeta.dialects.statement import Program
from tests.read_models.test_item_read_models import CALLS, SAID, assistant, call, output, select
from tests.support.helpers import user, users

SESSIONS = [f"s{n}" for n in range(5)]


@pytest.fixture
async def old(engine: AsyncEngine) -> AsyncIterator[MetadataStore]:
    """A database in which upstream's class kept sessions, opened with the tables."""
    await MetadataStore(engine).create_tables()  # upstream's class cannot do it on every database
    for session_id in SESSIONS:
        session = SQLAlchemySession(session_id, engine=engine)
        await session.add_items([user("1"), call("1"), output("1"), assistant("a"), user("2")])
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables(turn_on_structured_metadata=True)
    yield store
    await store.close()


async def everything(store: MetadataStore) -> list[Any]:
    return [await select(store, "*", SAID), await select(store, "*", CALLS)]


async def test_one_call_fills_the_tables_and_another_changes_nothing(old: MetadataStore) -> None:
    seen: list[Backfill] = []
    done = await backfill_conversations(old, batch_size=2, progress=seen.append)
    assert done == Backfill(5, "s4") == seen[-1]
    assert [each.last_session_id for each in seen] == ["s1", "s3", "s4"]
    assert await verify_projection(old) == []
    before = await everything(old)
    assert [len(rows) for rows in before] == [15, 5]
    assert await backfill_conversations(old) == done
    assert await everything(old) == before


async def test_it_goes_on_where_it_was_killed(
    old: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(done: Backfill) -> None:
        if done.sessions == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await backfill_conversations(old, batch_size=1, progress=give_up)
    assert {row[0] for row in await select(old, "session_id", SAID)} == {"s0", "s1"}
    assert await backfill_conversations(old, after="s1") == Backfill(3, "s4")
    assert await verify_projection(old) == []


@pytest.mark.parametrize("points", [range(12), range(12, 40)], ids=["early", "late"])
async def test_a_cancelled_batch_is_whole_or_not_there(old: MetadataStore, points: range) -> None:
    for point in points:
        task = asyncio.ensure_future(backfill_conversations(old, batch_size=5))
        for _ in range(point):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        rows = await select(old, "id", SAID)
        assert len(rows) in (0, 15)
    await backfill_conversations(old)
    assert await verify_projection(old) == []


async def test_it_mends_what_others_left(old: MetadataStore) -> None:
    await backfill_conversations(old)
    async with old.engine.begin() as connection:
        await connection.execute(text(f"UPDATE {CALLS} SET output = 'x' WHERE session_id = 's1'"))
        await connection.execute(text(f"DELETE FROM {SAID} WHERE session_id = 's2' AND turn = 2"))
    assert len(await verify_projection(old)) == 2
    await backfill_conversations(old)
    assert await verify_projection(old) == []


async def test_it_keeps_what_events_tell_of_items(engine: AsyncEngine) -> None:
    plain = MetadataStore(engine)
    await plain.create_tables()
    session = plain.session("ours")
    with acting_as("me", run_id="r1"):
        await session.add_items([user("1"), assistant("a")])
        await session._atomic_replace_items([user("1")])
    with acting_as("me", run_id="r2", trace_id="t"):
        await session.add_items([assistant("b")])
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables(turn_on_structured_metadata=True)
    await backfill_conversations(store)
    assert await select(store, "run_id, trace_id", SAID) == [("r1", None), ("r2", "t")]


async def test_beside_live_writers(old: MetadataStore, persistent_url: str) -> None:
    """Of ours, in the same process and on an engine of its own, and of upstream."""
    other_engine = create_async_engine(persistent_url)
    other = MetadataStore(other_engine, structured_metadata=True)

    async def write(store: MetadataStore) -> None:
        for n in range(6):
            for session_id in SESSIONS[:3]:
                await store.session(session_id).add_items([user(str(n)), call(f"{n}")])
                await store.session(session_id).add_items([output(f"{n}")])

    async def fill() -> None:
        for _ in range(3):
            await backfill_conversations(old, batch_size=2)

    try:
        await asyncio.gather(write(old), write(other), fill())
        assert await verify_projection(old) == []
    finally:
        await other.close()
        await other_engine.dispose()


async def test_writers_of_one_session_on_two_engines(
    structured: MetadataStore, persistent_url: str
) -> None:
    """Each waits for the other, and then goes on from what the other left."""
    other_engine = create_async_engine(persistent_url)
    other = MetadataStore(other_engine, structured_metadata=True)

    async def write(store: MetadataStore, name: str) -> None:
        session = store.session("shared")
        for n in range(15):
            await session.add_items([user(f"{name}{n}"), call(f"{name}{n}")])
            await session.add_items([output(f"{name}{n}"), assistant("so")])

    try:
        await asyncio.gather(write(structured, "a"), write(other, "b"))
    finally:
        await other.close()
        await other_engine.dispose()
    assert await verify_projection(structured) == []
    turns = [turn for turn, role in await select(structured, "turn, role", SAID) if role == "user"]
    assert turns == list(range(1, 31))


async def test_a_write_that_waited_goes_on_from_what_it_waited_for(
    structured: MetadataStore, server_backend: Any, url: str
) -> None:
    """The statement's snapshot is older than the lock that it gets."""
    first, second = structured.session("s"), structured.session("s")
    await first.add_items(users("1"))
    async with structured.engine.connect() as connection:
        await first.add_items([user("2"), call("1")], connection=connection)
        waiting = asyncio.ensure_future(second.add_items([assistant("a"), user("3")]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await connection.commit()
        await waiting
    assert [turn for (turn,) in await select(structured, "turn", SAID)] == [1, 2, 2, 3]


HOLDING: dict[str, Callable[[MetadataSession, AsyncConnection], Awaitable[Any]]] = {
    "our items": lambda session, held: session.add_items(users("late"), connection=held),
    "our metadata": lambda session, held: session.set_metadata({"k": 1}, connection=held),
    "upstream's items": lambda _, held: held.execute(
        text(
            "INSERT INTO agent_messages (session_id, message_data, created_at) "
            """VALUES ('s1', '{"role":"user","content":"late"}', '2037-01-01 00:00:00')"""
        )
    ),
}


@pytest.mark.parametrize("holding", HOLDING)
async def test_it_waits_for_those_who_write_items_to_a_session(
    old: MetadataStore, server_backend: Any, holding: str
) -> None:
    async with old.engine.connect() as held:
        await HOLDING[holding](old.session("s1"), held)
        filling = asyncio.ensure_future(backfill_conversations(old))
        waits = (server_backend.name, holding) != ("postgresql", "our metadata")
        await asyncio.wait([filling], timeout=0.3 if waits else 10.0)
        waited = not filling.done()
        await held.commit()
        await filling
    assert waited == waits
    assert await verify_projection(old) == []


async def test_the_statements_are_as_many_however_much_there_is(
    old: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(program: Program[Any], count: list[int]) -> Program[Any]:
        query = next(program)
        while True:
            count[-1] += 1
            try:
                query = program.send((yield query))
            except StopIteration as done:
                return done.value

    counts: list[int] = []
    dialect = old.log.database.dialect
    write = dialect.write

    async def counted(program: Program[Any], **options: Any) -> Any:
        counts.append(0)
        return await write(counting(program, counts), **options)

    await SQLAlchemySession("s1", engine=old.engine).add_items(users(*map(str, range(50))))
    monkeypatch.setattr(dialect, "write", counted)
    await backfill_conversations(old, batch_size=1)
    assert len(set(counts)) == 1
    await backfill_conversations(old, after="", batch_size=100)
    assert len(counts) == len(SESSIONS) + 1
    assert counts[-1] <= counts[0]


async def test_it_needs_the_tables(store: MetadataStore) -> None:
    with pytest.raises(StructuredMetadataOff):
        await backfill_conversations(store)
    with pytest.raises(InvalidInput):
        await backfill_conversations(store, batch_size=cast(Any, "many"))
    for after in (7, "a\0b"):
        with pytest.raises(InvalidInput):
            await backfill_conversations(store, after=cast(Any, after))
