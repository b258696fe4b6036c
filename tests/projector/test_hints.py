"""Hints: other processes are woken up by a notification, and nothing depends on it."""

import asyncio
from contextlib import aclosing

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataStore
from tests.support.backends import Backend

NEVER = 600.0
"""Seconds between two looks at the log, so that only a hint can end the pause."""


async def hint_received(engine: AsyncEngine, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The session of the event that another engine appends while a subscription pauses."""
    monkeypatch.setattr("eventmeta.projector.subscription.MIN_POLL", NEVER)
    reader = MetadataStore(engine, hints=True)
    await reader.create_tables()
    other = create_async_engine(url)
    try:
        writer = MetadataStore(other, hints=True)
        async with aclosing(reader.subscribe("mailer", max_poll=NEVER)) as events:
            waiting = asyncio.ensure_future(anext(events))
            while not reader.log.appended.has_waiters:
                await asyncio.sleep(0.001)
            await writer.session("alpha").set_metadata({"title": "Rivers"})
            async with asyncio.timeout(20):
                return (await waiting).stream_id
    finally:
        await other.dispose()


async def test_a_hint_ends_the_pause_of_another_process(
    engine: AsyncEngine, url: str, postgresql_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await hint_received(engine, url, monkeypatch) == "alpha"


async def test_hints_are_harmless_where_there_are_none(engine: AsyncEngine) -> None:
    store = MetadataStore(engine, hints=True)
    await store.create_tables()
    async with aclosing(store.subscribe("mailer")) as events:
        await store.session("alpha").set_metadata({"title": "Rivers"})
        assert (await anext(events)).stream_id == "alpha"
    await store.close()


async def test_a_hint_that_fails_harms_nothing(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MetadataStore(engine, hints=True)
    await store.create_tables()
    failed = []

    async def fail(tables: object) -> None:
        failed.append(tables)
        raise OSError("no notifications today")

    monkeypatch.setattr(store.log.database.dialect, "hint", fail)
    for number in range(3):
        await store.session("alpha").set_metadata({"n": number})
    await store.close()
    assert failed
    assert await MetadataStore(engine).session("alpha").get_metadata() == {"n": 2}
