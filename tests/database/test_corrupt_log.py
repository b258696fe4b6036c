"""A row of the log that somebody has changed: which one it is, is said wherever it is met."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import CorruptEvent, MetadataSession, MetadataStore, NewEvent, Position
from tests.support.backends import SQLITE, Backend

pytestmark = pytest.mark.each_dialect


async def forge(engine: AsyncEngine, backend: Backend, change: str) -> None:
    """Change the second event of the session, past the triggers that refuse that."""
    async with engine.begin() as connection:
        if backend.name == "postgresql":
            statements = ["ALTER TABLE agent_events DISABLE TRIGGER ALL"]
        else:
            listing = {
                "mariadb": "SELECT trigger_name FROM information_schema.triggers "
                "WHERE trigger_schema = database()"
            }.get(backend.name, "SELECT name FROM sqlite_master WHERE type = 'trigger'")
            names = (await connection.execute(text(listing))).scalars()
            statements = [f"DROP TRIGGER {name}" for name in names]
        for statement in [*statements, f"UPDATE agent_events SET {change} WHERE version = 2"]:
            await connection.exec_driver_sql(statement)


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    """With three events, each of which sets a key."""
    session = MetadataSession("alpha", engine=engine, create_tables=True)
    for n in range(3):
        await session.set_metadata({"k": n})
    return session


BAD_DATA = {
    "not json": "{",
    "no object": "[1]",
    "no changes": "{}",
    "changes that are none": '{"changes": 7}',
    "a change that is none": '{"changes": [["k"]]}',
    "a key that is none": '{"changes": [[7, "1"]]}',
}

READS: dict[str, Callable[[MetadataStore, MetadataSession], Awaitable[Any]]] = {
    "events": lambda store, _: every(store.events()),
    "events of the session": lambda store, _: every(store.events(stream="alpha")),
    "history": lambda _, session: session.history(),
    "retry": lambda _, session: session.set_metadata({"k": 1}, event_id=EVENT_ID),
}
FOLDS: dict[str, Callable[[MetadataStore, MetadataSession], Awaitable[Any]]] = {
    "as of a version": lambda _, session: session.get_metadata(as_of=3),
    "as of a position": lambda _, session: session.get_metadata(as_of=Position(10**6)),
    "history of a key": lambda _, session: session.history("k"),
    "diff": lambda _, session: session.diff(0, 3),
    "find": lambda store, _: store.find_sessions_by_metadata("k", 2, as_of=Position(10**6)),
    "replay": lambda store, _: store.replay("metadata"),
}
EVENT_ID = "01890000-0000-7000-8000-000000000001"


async def every(events: Any) -> list[Any]:
    return [event async for event in events]


async def second(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        query = text("SELECT position FROM agent_events WHERE version = 2")
        return int((await connection.execute(query)).scalar_one())


async def assert_named(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession, reads: Any, problem: str
) -> None:
    position = await second(engine)
    for name, read in reads.items():
        with pytest.raises(CorruptEvent, match=problem) as caught:
            await read(store, session)
        error = caught.value
        found = (error.position, error.stream_id, error.version)
        assert found == (position, "alpha", 2), name
        assert f"position {position} " in str(error)
        assert "backup" in str(error)


@pytest.mark.parametrize("data", BAD_DATA.values(), ids=list(BAD_DATA))
async def test_bad_data_is_named(
    engine: AsyncEngine, backend: Backend, session: MetadataSession, data: str
) -> None:
    store = MetadataStore(engine)
    await forge(engine, backend, f"data = '{data}', event_id = '{EVENT_ID}'")
    await assert_named(engine, store, session, READS, "has data that")
    assert await session.get_metadata() == {"k": 2}


async def test_a_fold_names_what_is_no_json(
    engine: AsyncEngine, backend: Backend, session: MetadataSession
) -> None:
    await forge(engine, backend, """data = '{"changes": [["k", "1"]'""")
    await assert_named(engine, MetadataStore(engine), session, FOLDS, "has data that")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("context = '{'", "context that cannot be read"),
        ("context = '7'", "context that cannot be read"),
        ("stream_type = 'order'", "unknown type of stream"),
    ],
)
async def test_whatever_else_is_bad_is_named(
    engine: AsyncEngine, backend: Backend, session: MetadataSession, change: str, problem: str
) -> None:
    await forge(engine, backend, change)
    reads = {"events": READS["events"]}
    await assert_named(engine, MetadataStore(engine), session, reads, problem)


@pytest.mark.only_on(*SQLITE)  # the column of others takes nothing but times
async def test_a_bad_time_is_named(
    engine: AsyncEngine, backend: Backend, session: MetadataSession
) -> None:
    await forge(engine, backend, "recorded_at = 'yesterday'")
    reads = {name: READS[name] for name in ("events", "events of the session", "history")}
    await assert_named(engine, MetadataStore(engine), session, reads, "yesterday")


async def test_an_event_of_the_apps_own_may_be_any_object(
    engine: AsyncEngine, session: MetadataSession
) -> None:
    store = MetadataStore(engine)
    await store.append("beta", NewEvent("items_listed", {"changes": 7, "item_ids": None}))
    assert (await every(store.events(stream="beta")))[0].data["changes"] == 7
