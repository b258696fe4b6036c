"""``connection=``: writing inside the caller's own transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from eventmeta import (
    DatabaseRefused,
    MetadataSession,
    MetadataStore,
    NewEvent,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from tests.support.backends import Backend
from tests.support.helpers import refuse, user, versions

Write = Callable[[MetadataStore, MetadataSession, Any], Awaitable[Any]]

WRITES: dict[str, Write] = {
    "set": lambda store, session, within: session.set_metadata({"k": 2}, connection=within),
    "delete": lambda store, session, within: session.delete_metadata(["k"], connection=within),
    "add": lambda store, session, within: session.add_items([user("c")], connection=within),
    "pop": lambda store, session, within: session.pop_item(connection=within),
    "clear": lambda store, session, within: session.clear_session(connection=within),
    "append": lambda store, session, within: store.append(
        "s", NewEvent("noted"), connection=within
    ),
}
AFTER: dict[str, tuple[list[str], dict[str, Any]]] = {
    "set": (["a", "b"], {"k": 2}),
    "delete": (["a", "b"], {}),
    "add": (["a", "b", "c"], {"k": 1}),
    "pop": (["a"], {"k": 1}),
    "clear": ([], {}),
    "append": (["a", "b"], {"k": 1}),
}


class Rollback(Exception):
    """What the app raises to have its transaction rolled back."""


@pytest.fixture
async def store(store: MetadataStore, engine: AsyncEngine) -> MetadataStore:
    """A store beside a table of the app's own, with one session that has items and metadata."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orders (number INTEGER)")
    await store.session("s").set_metadata({"k": 1})
    await store.session("s").add_items([user("a"), user("b")])
    return store


@pytest.fixture
def session(store: MetadataStore) -> MetadataSession:
    return store.session("s")


async def order(connection: AsyncConnection | AsyncSession) -> None:
    await connection.execute(text("INSERT INTO orders VALUES (1)"))


async def orders(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM orders")) or 0)


async def state(session: MetadataSession) -> tuple[list[Any], dict[str, Any]]:
    items: list[Any] = await session.get_items()
    return [entry["content"] for entry in items], await session.get_metadata()


@pytest.mark.parametrize("first", ["the app", "the store"])
@pytest.mark.parametrize("name", WRITES)
async def test_it_is_committed_with_the_apps_rows(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession, name: str, first: str
) -> None:
    async with engine.begin() as connection:
        if first == "the app":
            await order(connection)
        result = await WRITES[name](store, session, connection)
        if first != "the app":
            await order(connection)
    assert await state(session) == AFTER[name]
    assert await versions(session) == [1, 2, 3]
    assert await orders(engine) == 1
    assert result == user("b") if name == "pop" else result.version == 3
    assert await verify_projection(store) == []


@pytest.mark.parametrize("first", ["the app", "the store"])
@pytest.mark.parametrize("name", WRITES)
async def test_it_is_rolled_back_with_the_apps_rows(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession, name: str, first: str
) -> None:
    with pytest.raises(Rollback):  # noqa: PT012
        async with engine.begin() as connection:
            if first == "the app":
                await order(connection)
            await WRITES[name](store, session, connection)
            raise Rollback
    assert await state(session) == (["a", "b"], {"k": 1})
    assert await versions(session) == [1, 2]
    assert await orders(engine) == 0
    await session.set_metadata({"next": True})
    assert await versions(session) == [1, 2, 3]
    assert await verify_projection(store) == []


async def test_a_rejected_write_leaves_the_transaction_usable(
    backend: Backend, engine: AsyncEngine, store: MetadataStore, session: MetadataSession
) -> None:
    await refuse(engine, backend)
    async with engine.begin() as connection:
        await order(connection)
        await session.set_metadata({"before": 1}, connection=connection)
        with pytest.raises(VersionConflict):
            await session.set_metadata({"k": 5}, expected_version=9, connection=connection)
        with pytest.raises(DatabaseRefused, match="not in this database"):
            await store.append("s", NewEvent("refused"), connection=connection)
        await session.set_metadata({"after": 1}, expected_version=3, connection=connection)
        await order(connection)
    assert await session.get_metadata() == {"k": 1, "before": 1, "after": 1}
    assert await versions(session) == [1, 2, 3, 4]
    assert await orders(engine) == 2
    assert await verify_projection(store) == []


async def test_a_write_that_fails_midway_leaves_nothing_in_the_transaction(
    backend: Backend, engine: AsyncEngine, store: MetadataStore, session: MetadataSession
) -> None:
    """The items are there already when the database refuses their event."""
    await refuse(engine, backend, "items_added")
    async with engine.begin() as connection:
        with pytest.raises(DatabaseRefused, match="not in this database"):
            await session.add_items([user("c")], connection=connection)
        await order(connection)
    assert await state(session) == (["a", "b"], {"k": 1})
    assert await versions(session) == [1, 2]
    assert await orders(engine) == 1


async def test_several_writes_in_one_transaction(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession
) -> None:
    event_id = new_event_id()
    async with engine.begin() as connection:
        await session.set_metadata({"k": 2}, event_id=event_id, connection=connection)
        await session.set_metadata({"k": 2}, event_id=event_id, connection=connection)
        assert await session.pop_item(connection=connection) == user("b")
        await session.clear_session(keep_metadata=True, connection=connection)
        await store.session("t").add_items([user("other")], connection=connection)
    assert await state(session) == ([], {"k": 2})
    assert await state(store.session("t")) == (["other"], {})
    assert await versions(session) == [1, 2, 3, 4, 5]
    assert [event.position async for event in store.events()] == sorted(
        [event.position async for event in store.events()]
    )


@pytest.mark.parametrize("commits", [True, False])
async def test_an_orm_session_serves_as_well(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession, commits: bool
) -> None:
    async with AsyncSession(engine) as orm:
        await order(orm)
        await session.set_metadata({"k": 2}, connection=orm)
        await (orm.commit() if commits else orm.rollback())
    assert await session.get_metadata() == {"k": 2 if commits else 1}
    assert await orders(engine) == int(commits)


async def test_a_savepoint_of_the_callers_undoes_it(
    engine: AsyncEngine, store: MetadataStore, session: MetadataSession
) -> None:
    async with engine.begin() as connection:
        await order(connection)
        with pytest.raises(Rollback):  # noqa: PT012
            async with connection.begin_nested():
                await session.set_metadata({"k": 2}, connection=connection)
                raise Rollback
        await session.set_metadata({"k": 3}, connection=connection)
    assert await session.get_metadata() == {"k": 3}
    assert await versions(session) == [1, 2, 3]
    assert await verify_projection(store) == []


async def test_nothing_is_visible_before_the_commit(
    persistent_backend: Backend, engine: AsyncEngine, session: MetadataSession
) -> None:
    async with engine.begin() as connection:
        await session.set_metadata({"k": 2}, connection=connection)
        assert await session.get_metadata() == {"k": 1}
        assert await versions(session) == [1, 2]
    assert await session.get_metadata() == {"k": 2}
