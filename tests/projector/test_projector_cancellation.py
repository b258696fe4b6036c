"""A projector that is cancelled or stopped leaves nothing half done, and no lease."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataStore, OutcomeUnknown, verify_projection
from eventmeta.projector.swap import Swapping
from tests.conftest import LONG_VARIABLE, all_returned, watch_connections
from tests.support.faults import cancel_at, cancel_everywhere
from tests.support.rebuilding import (
    ASYNC,
    TRACE,
    Process,
    applied_in_order,
    async_metadata,
    holder,
    left_behind,
    select_rows,
    trace,
    write_metadata,
)

STRIDE = 1 if LONG_VARIABLE in os.environ else 9


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("projection", [trace(), async_metadata()], ids=lambda each: each.name)
async def test_a_cancelled_step_is_complete_or_absent(
    engine: AsyncEngine, store: MetadataStore, projection: Any, late: bool
) -> None:
    checked_out = watch_connections(engine)
    process = Process(engine, projection)
    await process.ready()
    async with process.follower.lease.held() as claim:
        assert claim is not None
        written = 0

        async def step() -> Any:
            return await process.follower.mover.step(claim, await store.horizon())

        await write_metadata(store, 1, written)
        async for outcome in cancel_everywhere(step, late=late):
            assert outcome.error is None
            await all_returned(checked_out)
            written += 1
            await write_metadata(store, 1, written)
        await process.follower.catch_up(claim)
    await check(store, projection.name, written + 1)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_cancelled_catch_up_gives_its_lease_back(
    engine: AsyncEngine, store: MetadataStore, late: bool
) -> None:
    checked_out = watch_connections(engine)
    process = Process(engine, trace())
    await process.ready()
    written = 0
    async for outcome in cancel_everywhere(lambda: process.store.catch_up(TRACE), late=late):
        assert outcome.error is None
        await all_returned(checked_out)
        assert await holder(process.store) is None
        await write_metadata(store, 1, written)
        written += 1
    await process.store.catch_up(TRACE)
    await check(store, TRACE, written)


async def check(store: MetadataStore, name: str, written: int) -> None:
    if name == TRACE:
        assert len(await applied_in_order(store)) == written
    else:
        assert await select_rows(store, ASYNC) == await select_rows(
            store, "agent_sessions_metadata"
        )


async def test_a_cancelled_rebuild_goes_on(engine: AsyncEngine, store: MetadataStore) -> None:
    checked_out = watch_connections(engine)
    await write_metadata(store)
    point, reached = 1 + random.randrange(STRIDE), True
    while reached:
        outcome = await cancel_at(point, lambda: store.rebuild("metadata"))
        assert outcome.error is None
        await all_returned(checked_out)
        await write_metadata(store, 1, point)
        if reached := outcome.reached:
            await store.rebuild("metadata")
        assert await verify_projection(store) == []
        assert await left_behind(store.engine) == []
        point += STRIDE


async def test_a_rebuild_that_is_cancelled_as_it_clears_away_does_that(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Swapping._clear_away

    async def cancelled(swapping: Swapping) -> None:
        rebuilding.cancel()
        await original(swapping)

    monkeypatch.setattr(Swapping, "_clear_away", cancelled)
    await write_metadata(store)
    rebuilding = asyncio.create_task(store.rebuild("metadata"))
    with pytest.raises(asyncio.CancelledError):
        await rebuilding
    assert await left_behind(store.engine) == []
    assert await verify_projection(store) == []


@pytest.mark.parametrize(
    "failure",
    [OutcomeUnknown("the connection was lost", None), RuntimeError("what nobody foresaw")],
)
async def test_a_projector_can_be_stopped_when_the_database_is_gone(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    store.register(trace())
    await store.create_tables()

    async def gone(work: Any, *, long: bool = True) -> Any:
        raise failure

    projector = store.projector()
    await projector.__aenter__()
    await write_metadata(store)
    while await holder(store) is None:
        await asyncio.sleep(0.01)
    with monkeypatch.context() as patch:
        patch.setattr(store.log.database, "repeated", gone)
        stopping = asyncio.create_task(projector.__aexit__(None, None, None))
        done, _ = await asyncio.wait([stopping], timeout=10)
    assert done
    assert await holder(store) is not None, "the lease ends by itself"
