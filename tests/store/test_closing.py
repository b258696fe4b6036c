"""Closing a store: it waits for what is under way, takes no more, and leaves nothing open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from eventmeta import MetadataStore, StoreClosed
from tests.conftest import watch_connections
from tests.support.faults import cancel_at
from tests.support.rebuilding import trace

READS: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "metadata": lambda store: store.session("s").get_metadata(),
    "the past": lambda store: store.session("s").get_metadata(as_of=1),
    "search": lambda store: store.find_sessions_by_metadata("k", 1),
    "sql": lambda store: store.schema_sql(),
}
STEP_BY_STEP: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "status": lambda store: store.status(),
    "rebuild": lambda store: store.rebuild("metadata"),
}


async def opened(url: str, **options: Any) -> MetadataStore:
    store = MetadataStore.from_url(url, **options)
    await store.create_tables()
    await store.session("s").set_metadata({"k": 1})
    return store


def ours() -> list[str]:
    """The tasks of the library that have not ended."""
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("event")]


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
async def test_it_waits_for_what_is_being_read(
    url: str, read: Callable[[MetadataStore], Awaitable[Any]]
) -> None:
    store = await opened(url)
    expected = await read(store)
    reading = asyncio.ensure_future(read(store))
    await asyncio.sleep(0)
    await store.close()
    assert reading.done()
    assert await reading == expected
    assert ours() == []
    gc.collect()  # which tells of a connection that was left open


@pytest.mark.parametrize("work", STEP_BY_STEP.values(), ids=list(STEP_BY_STEP))
async def test_what_takes_several_steps_ends_at_the_next(
    url: str, work: Callable[[MetadataStore], Awaitable[Any]]
) -> None:
    store = await opened(url)
    working = asyncio.ensure_future(work(store))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreClosed):
        await working
    assert ours() == []
    gc.collect()


@pytest.mark.parametrize("hints", [False, True])
async def test_a_projector_ends_by_itself(url: str, hints: bool) -> None:
    store = await opened(url, hints=hints)
    store.register(trace())
    await store.create_tables()
    running = asyncio.create_task(store.projector().run())
    await store.wait_for(await store.horizon(), "trace")
    await store.close()
    async with asyncio.timeout(5):
        await running
    assert ours() == []
    gc.collect()


async def test_it_does_not_wait_for_whoever_reads_events(url: str) -> None:
    """Who may be the one that closes it."""
    store = await opened(url, hints=True)
    async with asyncio.timeout(10):
        reading = store.subscribe("name")
        await anext(reading)
        await store.close()
        with pytest.raises(StoreClosed):
            await anext(reading)
    gc.collect()


async def test_a_handle_is_closed_within_a_projection(store: MetadataStore) -> None:
    """Which is part of what is under way."""
    closed: list[str] = []

    async def apply(*_: object) -> None:
        async with MetadataStore(store.engine) as handle:
            closed.append(str(await handle.session("s").get_metadata()))

    store.register(replace(trace(), apply=apply))
    await store.create_tables()
    await store.session("s").set_metadata({"k": 1})
    async with asyncio.timeout(10):
        await store.catch_up("trace")
    assert closed == ["{'k': 1}"]


async def test_the_first_connection_of_a_cancelled_call_is_waited_for(url: str) -> None:
    """Or it would outlive the engine's pool."""
    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        async with MetadataStore.from_url(url) as store:
            outcome = await cancel_at(point, store.session("s").get_metadata)
        assert ours() == []
        gc.collect()
    assert point > 1


async def test_a_cancelled_close_has_closed_everything(url: str) -> None:
    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        store = await opened(url)
        connections = watch_connections(store.engine, until=["close"])
        writing = asyncio.create_task(store.session("s").set_metadata({"k": 2}))
        await asyncio.sleep(0)
        outcome = await cancel_at(point, store.close)
        assert writing.done()
        assert outcome.error is None
        assert connections == set()
        assert ours() == []
    assert point > 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("in_order", [True, False])
async def test_it_is_closed_in_a_later_event_loop(persistent_url: str, in_order: bool) -> None:
    """Whatever was under way when the first one ended, or was torn off."""
    stores: list[MetadataStore] = []

    async def write() -> None:
        stores.append(await opened(persistent_url))
        writing = asyncio.create_task(stores[0].session("s").set_metadata({"k": 2}))
        await asyncio.sleep(0)
        del writing

    def run() -> None:
        if in_order:
            asyncio.run(write())
        else:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(write())
            loop.close()
        asyncio.run(asyncio.wait_for(stores.pop().close(), 10))

    await asyncio.to_thread(run)
    gc.collect()
