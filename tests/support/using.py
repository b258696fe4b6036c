"""All that a store does, once each, for tests that are about what is around it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, MetaData, Table, event, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta import MetadataStore, NewEvent, verify_projection
from projections import AppliedProjection
from projections.types import SessionId
from tests.support.helpers import contents, user

CLOSED = Table(
    "closed_sessions",
    MetaData(),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("session_id", SessionId),
)


async def note(connection: AsyncConnection, events: Any, tables: Any) -> None:
    for each in events:
        row = {"position": each.position, "session_id": each.stream_id}
        await connection.execute(insert(tables[0]), row)


def closings() -> AppliedProjection:
    """A projection in plain Python, whose statements go through SQLAlchemy."""
    return AppliedProjection(
        name="closings",
        version=1,
        stream_type="session",
        event_types=frozenset({"closed"}),
        tables=(CLOSED,),
        apply=note,
    )


async def use(store: MetadataStore, word: str = "hello") -> None:
    """Have the store do all that it does, each with the right result."""
    await store.create_tables()
    session = store.session("one")
    first = await session.set_metadata({"k": {"a": [1, word]}, "gone": None}, actor="me")
    assert first is not None
    await session.add_items([user(word), user("2")])
    await session.add_items([user("3")])
    await session.delete_metadata(["gone"])
    assert await session.get_metadata() == {"k": {"a": [1, word]}}
    assert contents(await session.get_items()) == [word, "2", "3"]
    assert contents([await session.pop_item()]) == ["3"]
    assert await session.get_metadata(as_of=first.recorded_at) == {
        "k": {"a": [1, word]},
        "gone": None,
    }
    assert await store.find_sessions_by_metadata("k", {"a": [1, word]}) == ["one"]
    assert [entry.event.version for entry in await session.history()] == [1, 2, 3, 4, 5]
    closed = await store.append("one", NewEvent("closed"))
    events = [each async for each in store.events(stream="one")]
    assert [each.version for each in events] == [1, 2, 3, 4, 5, 6]
    assert await store.horizon() == events[-1].position == closed.position
    store.register(closings())
    await store.create_tables()
    await store.catch_up("closings", timeout=20)
    await store.rebuild("closings")
    await store.rebuild("metadata")
    owned = await store.as_user("ann").create_session()
    await owned.set_metadata({"k": word})
    await owned.add_items([user(word)])
    assert await owned.get_metadata() == {"k": word}
    assert await store.delete_user("ann") is not None
    async with store.engine.begin() as connection:
        await session.set_metadata({"within": True}, connection=connection)
    assert (await session.get_metadata())["within"] is True
    await session.clear_session()
    assert await session.get_items() == []
    assert await verify_projection(store) == []


def begin_by_events(engine: AsyncEngine, begin: str = "BEGIN") -> None:
    """SQLAlchemy's recipe for SQLite, whose driver does not begin a transaction before it must."""

    @event.listens_for(engine.sync_engine, "connect")
    def do_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def do_begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)
