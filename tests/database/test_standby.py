"""A standby serves what is there now, and refuses what only the primary can tell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import DatabaseFailure, DatabaseUnavailable, MetadataStore, StandbyServer
from tests.conftest import backends_are_required
from tests.support import servers
from tests.support.backends import Backend
from tests.support.helpers import contents, users
from tests.support.sample_projections import noted, tag, tags, trail


@pytest.fixture
async def standby(
    postgresql_backend: Backend, store: MetadataStore
) -> AsyncIterator[MetadataStore]:
    """A store on a standby of the server, with what has been written until then."""
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    session = store.session("alpha")
    await session.add_items(users("hello", "world"))
    await session.set_metadata({"k": 1})
    await session.set_metadata({"k": 2})
    await store.append("alpha", noted())
    await store.append("alpha", tag("x"))
    primary = store.engine.url.render_as_string(hide_password=False)
    try:
        with servers.standby(primary) as url:
            engine = create_async_engine(url)
            follower = MetadataStore(engine)
            follower.register(trail())
            follower.register(tags())
            await caught_up(store, follower)
            yield follower
            await engine.dispose()
    except servers.Unavailable as error:
        if backends_are_required() and servers.POSTGRES_VARIABLE not in os.environ:
            raise
        pytest.skip(str(error))


async def caught_up(store: MetadataStore, follower: MetadataStore) -> None:
    async with store.engine.connect() as connection:
        end = await connection.scalar(text("SELECT pg_current_wal_flush_lsn()::text"))
    async with asyncio.timeout(20), follower.engine.connect() as connection:
        reached = text(f"SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn")
        while not await connection.scalar(reached):
            await asyncio.sleep(0.02)


async def all_of(events: Any) -> list[Any]:
    return [event async for event in events]


async def subscribe(store: MetadataStore) -> None:
    async with aclosing(store.subscribe("mailer")) as events:
        await anext(events)


async def project(store: MetadataStore) -> None:
    async with store.projector():
        await asyncio.sleep(60)


REFUSED: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "events": lambda store: all_of(store.events()),
    "horizon": lambda store: store.horizon(),
    "subscribe": subscribe,
    "projector": project,
    "projector's run": lambda store: store.projector().run(),
    "catch_up": lambda store: store.catch_up(),
    "rebuild": lambda store: store.rebuild("metadata"),
    "replay": lambda store: store.replay("metadata"),
    "status": lambda store: store.status(),
}


async def test_what_a_standby_can_tell_and_what_not(
    store: MetadataStore, standby: MetadataStore
) -> None:
    session = standby.session("alpha")
    assert contents(await session.get_items()) == ["hello", "world"]
    assert await session.get_metadata() == {"k": 2}
    assert await session.get_metadata(as_of=2) == {"k": 1}
    assert await standby.find_sessions_by_metadata("k", 2) == ["alpha"]
    assert [entry.event.version for entry in await session.history()] == [1, 2, 3, 4, 5]
    stream = [event.version async for event in standby.events(stream="alpha")]
    assert stream == [1, 2, 3, 4, 5]

    for call in REFUSED.values():
        with pytest.raises(StandbyServer, match="open the store on the primary"):
            await asyncio.wait_for(call(standby), 10)

    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: session.set_metadata({"k": 3}),
        lambda: standby.append("alpha", noted()),
        lambda: session.add_items(users("again")),
    ]
    for write in writes:
        with pytest.raises(DatabaseUnavailable) as refused:
            await write()
        assert refused.value.code == "25006"
    with pytest.raises(DatabaseFailure):
        await standby.create_tables()


async def test_it_follows_once_it_is_the_primary(
    store: MetadataStore, standby: MetadataStore
) -> None:
    """Promoted after the failure of the other."""
    async with standby.engine.connect() as connection:
        await connection.execute(text("SELECT pg_promote()"))
        await connection.rollback()
    await standby.create_tables()
    async with standby.projector():
        event = await standby.append("beta", noted())
        await standby.wait_for(event.position, "trail")
    assert await standby.horizon() == event.position
    log = await all_of(standby.events())
    assert [each.stream_id for each in log] == ["alpha"] * 5 + ["beta"]
