"""Leases: one worker at a time moves a projection on, and one that was away cannot undo that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta import (
    LeaseLost,
    MetadataStore,
    ProjectionOutdated,
    RebuildUnderWay,
    verify_projection,
)
from eventmeta.dialects.sqlite.driver import SharedConnectionBusy
from eventmeta.projector.checkpoints import LeaseToken, new_holder
from eventmeta.projector.rebuild import Rebuild
from eventmeta.projector.worker import Follower
from projections import AppliedProjection, Event
from tests.support.backends import Backend
from tests.support.processes import TIMEOUT
from tests.support.rebuilding import (
    ASYNC,
    TRACE,
    Process,
    applied_in_order,
    async_metadata,
    holder,
    labels,
    left_behind,
    select_rows,
    trace,
    write_metadata,
)

SHORT_MS = 200


@pytest.fixture
async def process(url: str) -> AsyncIterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(projection: Any = None) -> Process:
        made.append(Process(url, projection or trace()))
        return made[-1]

    yield make
    for each in made:
        await each.engine.dispose()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventmeta.projector.checkpoints.LEASE_MS", SHORT_MS)


# --- Who has it ----------------------------------------------------------------------------------


async def test_one_has_it_until_it_is_given_back(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    one, two = process(), process()
    await one.ready()
    claim = await one.take()
    assert await two.follower.lease.take() is None
    assert await one.take() == claim, "renewed"
    assert claim.holder == await holder(one.store)
    await one.follower.lease.give_back()
    assert await holder(one.store) is None
    taken = await two.take()
    assert taken.epoch == claim.epoch + 1
    await one.follower.lease.give_back()
    assert await holder(one.store) == taken.holder, "it was not the first one's to give"


@pytest.mark.usefixtures("short_leases")
async def test_that_of_a_dead_worker_is_taken_over(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    one, two = process(), process()
    await one.ready()
    await one.take()
    await write_metadata(store)
    claim = await two.take_over()
    assert await two.follower.catch_up(claim) == 5
    assert len(await applied_in_order(store)) == 5


async def test_the_time_is_that_of_the_database(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clocks of the processes say."""
    store.register(trace())
    await store.create_tables()
    for seconds in (0, 10**9):
        monkeypatch.setattr("time.time", lambda seconds=seconds: seconds)
        await store.catch_up(TRACE)
    monkeypatch.undo()
    registered = store.log.registry[TRACE]
    follower = Follower(store.log, registered, new_holder())
    assert await follower.lease.take()
    found = await follower.mover.checkpoint()
    assert found is not None
    assert abs(found.now - datetime.now(UTC).timestamp() * 1_000) < 60_000
    assert 0 < found.expires_at - found.now <= 10_000


HOUR_MS = 3_600_000


async def taken_by_a_clock_ahead(store: MetadataStore, state: str, ahead_ms: int) -> None:
    """A lease as one has it who took it when the clock was ahead, which is right again."""
    statement = (
        "UPDATE agent_checkpoints SET holder = 'gone', expires_at = expires_at + :ahead "
        "WHERE state = :state AND expires_at > 0"
    )
    async with store.engine.begin() as connection:
        changed = await connection.execute(text(statement), {"ahead": ahead_ms, "state": state})
        assert changed.rowcount == 1


@pytest.mark.parametrize("ahead_ms", [2_000, HOUR_MS, 24 * 365 * HOUR_MS])
async def test_no_lease_outlives_a_clock_that_was_ahead(
    persistent_backend: Backend,
    store: MetadataStore,
    process: Callable[..., Process],
    ahead_ms: int,
) -> None:
    one, two = process(), process()
    await one.ready()
    await one.take()
    assert await two.follower.lease.take() is None
    await taken_by_a_clock_ahead(store, "live", ahead_ms)
    assert await holder(one.store) is None
    assert await two.take()
    assert await holder(one.store) is not None


async def test_a_clock_that_is_set_back_a_little_ends_no_lease(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    one = process()
    await one.ready()
    await one.take()
    await taken_by_a_clock_ahead(store, "live", 500)
    assert await one.follower.lease.take() is None
    assert await holder(one.store) == "gone"


async def test_that_of_a_subscription_does_not_either(store: MetadataStore) -> None:
    await write_metadata(store, 1, 2)
    async with aclosing(store.subscribe("mailer")) as events:
        await anext(events)
        await taken_by_a_clock_ahead(store, "subscription", HOUR_MS)
        async with asyncio.timeout(5), aclosing(store.subscribe("mailer")) as others:
            assert (await anext(others)).position == 1
        assert (await store.status()).subscriptions["mailer"].reader is None


async def test_that_of_a_rebuild_does_not_either(store: MetadataStore) -> None:
    await write_metadata(store, 1, 2)
    registered = store.log.registry["metadata"]
    held = Rebuild(store.log, registered, "other")

    async def work(claim: LeaseToken) -> None:
        with pytest.raises(RebuildUnderWay):
            await store.rebuild("metadata")
        await taken_by_a_clock_ahead(store, "building", HOUR_MS)
        await store.rebuild("metadata")

    await held._with_lease(work)
    assert await left_behind(store.engine) == []


@pytest.mark.usefixtures("mariadb_backend")
async def test_the_time_of_a_session_zone_does_not_matter(store: MetadataStore) -> None:
    async with store.engine.connect() as connection:
        seen: list[Any] = []
        for zone in ("+00:00", "-12:00", "+13:00"):
            await connection.exec_driver_sql(f"SET time_zone = '{zone}'")
            seen.append(await connection.scalar(select(store.log.database.dialect.now_ms())))
    assert max(seen) - min(seen) < 60_000


async def test_a_projector_gives_it_back_when_it_ends(store: MetadataStore) -> None:
    store.register(trace())
    await store.create_tables()
    async with store.projector():
        await write_metadata(store)
        await store.wait_for(await store.horizon(), TRACE)
        async with asyncio.timeout(TIMEOUT):
            while await holder(store) is None:
                await asyncio.sleep(0.01)
    assert await holder(store) is None
    assert len(await applied_in_order(store)) == 5


async def test_several_projections_beside_reads_of_the_app(store: MetadataStore) -> None:
    """Also where all share one connection, on which nobody may end the transaction of another."""
    names = [TRACE, "trace2", "trace3"]
    for name in names:
        store.register(slow_trace(name))
    await store.create_tables()
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            for name in names:
                async with store.engine.connect() as connection:
                    await connection.execute(text(f"SELECT count(*) FROM {name}"))
            await asyncio.sleep(0.005)

    reading = asyncio.create_task(read())
    async with store.projector(batch_size=3):
        await asyncio.gather(*(write_metadata(store, 10, n) for n in range(4)))
        done.set()
        await reading
        position = await store.horizon()
        await asyncio.gather(*(store.wait_for(position, name) for name in names))
    for name in names:
        assert len(await applied_in_order(store, name)) == 40


@pytest.mark.usefixtures("sqlite_memory_backend")
async def test_the_transaction_of_another_is_not_taken_for_ours(store: MetadataStore) -> None:
    """On one connection, where someone has rolled ours back and a third has begun anew."""
    ours = store.log.database.dialect.transaction()
    lent = (await (await ours.__aenter__()).get_raw_connection()).driver_connection
    assert lent is not None
    await lent.rollback()
    await lent.execute("BEGIN")
    with pytest.raises(SharedConnectionBusy):
        await ours.__aexit__(None, None, None)


def slow_trace(name: str) -> AppliedProjection:
    made = trace(name)

    async def apply(connection: AsyncConnection, events: Any, tables: Any) -> None:
        for event in events:
            await asyncio.sleep(0)
            await made.apply(connection, [event], tables)

    return replace(made, apply=apply)


# --- Fencing -------------------------------------------------------------------------------------


class Stalling:
    """Applies events, but is away for a while before it does so."""

    def __init__(self) -> None:
        self.entered, self.goes_on = asyncio.Event(), asyncio.Event()

    def projection(self) -> AppliedProjection:
        return replace(trace(), apply=self.apply)

    async def apply(
        self, connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
    ) -> None:
        self.entered.set()
        await self.goes_on.wait()
        await trace().apply(connection, events, tables)


@pytest.mark.parametrize("projection", [trace(), async_metadata()], ids=lambda each: each.name)
@pytest.mark.usefixtures("short_leases")
async def test_who_comes_back_too_late_applies_nothing(
    persistent_backend: Backend,
    store: MetadataStore,
    process: Callable[..., Process],
    projection: Any,
) -> None:
    one, two = process(projection), process(projection)
    await one.ready()
    late = await one.take()
    await write_metadata(store)
    horizon = await store.horizon()
    await two.follower.catch_up(await two.take_over())
    before = await select_rows(store, ASYNC) if projection.name == ASYNC else None
    await write_metadata(store, 5, 5)
    for until in (horizon, await store.horizon()):
        with pytest.raises(LeaseLost, match="taken over"):
            await one.follower.mover.step(late, until)
    if before is None:
        assert len(await applied_in_order(store)) == 5
    else:
        assert await select_rows(store, ASYNC) == before
        assert await select_rows(store, "agent_sessions_metadata") != before


@pytest.mark.usefixtures("short_leases")
async def test_a_worker_that_is_away_in_the_midst_of_a_batch(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    """Nobody takes over before its transaction has ended; afterwards it does no more."""
    stalling = Stalling()
    one, two = process(stalling.projection()), process()
    await one.ready()
    await write_metadata(store, 20)
    working = asyncio.create_task(one.follower.catch_up(await one.take()))
    await stalling.entered.wait()
    waiting = asyncio.create_task(two.take_over())
    done, _ = await asyncio.wait([waiting], timeout=3 * SHORT_MS / 1_000)
    assert not done
    stalling.entered.clear()
    stalling.goes_on.set()
    claim = await waiting
    applied = await two.follower.catch_up(claim)
    if working.done() and not working.exception():
        assert (working.result(), applied) == (20, 0)
    else:
        with pytest.raises(LeaseLost):
            await working
    assert len(await applied_in_order(store)) == 20


async def test_one_whose_transaction_is_killed_has_applied_nothing(
    server_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    stalling = Stalling()
    one, two = process(stalling.projection()), process()
    await one.ready()
    await write_metadata(store, 5)
    working = asyncio.create_task(one.follower.catch_up(await one.take()))
    await stalling.entered.wait()
    await kill_others(server_backend, one.engine)
    stalling.goes_on.set()
    await working
    assert len(await applied_in_order(store)) == 5, "it has tried again"
    assert await two.follower.lease.take() is None


async def kill_others(backend: Backend, engine: AsyncEngine) -> None:
    """End the connections that have a transaction open."""
    async with engine.connect() as connection:
        if backend.name == "postgresql":
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE state = 'idle in transaction' AND pid <> pg_backend_pid() "
                    "AND datname = current_database()"
                )
            )
            return
        found = await connection.scalars(
            text(
                "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx "
                "WHERE trx_mysql_thread_id <> connection_id()"
            )
        )
        for number in found.all():
            await connection.execute(text(f"KILL {int(number)}"))


STAGES = ["horizon", "_fill", "_catch_up", "_compare"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("short_leases")
async def test_a_rebuild_that_is_taken_over_does_no_harm(
    persistent_backend: Backend,
    store: MetadataStore,
    process: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """It is away at the beginning of a stage, and comes back when the other is in the last one."""
    await write_metadata(store)
    one, two = process(), process()
    away, back, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stall(log: Any, at: str) -> None:
        if log is one.store.log and at == stage:
            away.set()
            await back.wait()
        if log is two.store.log and at == "_compare":
            back.set()
            await over.wait()

    def stalled(at: str) -> Any:
        original = getattr(Rebuild, at)

        async def method(rebuild: Rebuild, claim: LeaseToken) -> None:
            await stall(rebuild.log, at)
            await original(rebuild, claim)

        return method

    async def horizon() -> int:
        await stall(one.store.log, "horizon")
        return await store.horizon()

    for at in STAGES[1:]:
        monkeypatch.setattr(Rebuild, at, stalled(at))
    if stage == "horizon":
        monkeypatch.setattr(one.store.log, "horizon", horizon)
    first = asyncio.create_task(one.store.rebuild("metadata"))
    await away.wait()
    await die(first)
    second = asyncio.create_task(rebuild_when_free(two.store))
    with pytest.raises(LeaseLost):
        await first
    over.set()
    await second
    assert await verify_projection(store) == []
    assert await left_behind(store.engine) == []


async def die(rebuild: asyncio.Task[Any]) -> None:
    """Let it renew its lease no more, as if its process stood still."""
    for task in asyncio.all_tasks():
        if task.get_name() == "eventmeta-lease":
            task.cancel()
    await asyncio.sleep(0)


async def rebuild_when_free(store: MetadataStore) -> None:
    while True:
        try:
            await store.rebuild("metadata")
        except RebuildUnderWay:
            await asyncio.sleep(0.02)
        else:
            return


# --- Of another version --------------------------------------------------------------------------


async def test_a_new_version_is_built_beside_the_old_one(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    """With other columns; the process that has the old version does not write any more."""
    old, new = process(labels(1)), process(labels(2))
    await old.ready()
    await write_metadata(store)
    claim = await old.take()
    await old.follower.catch_up(claim)
    assert await contents(store, "value") == [("s0", "4"), ("s1", "3")]
    await new.store.create_tables()
    assert await contents(store, "value") == [("s0", "4"), ("s1", "3")]
    await write_metadata(store, 2, 5)
    async with new.store.projector():
        await new.store.wait_for(await store.horizon(), "labels")
    assert await contents(store, "text") == [("s0", "6"), ("s1", "5")]
    await write_metadata(store, 2, 7)
    with pytest.raises(LeaseLost):
        await old.follower.catch_up(claim)
    async with old.follower.lease.held() as late:
        assert late is not None
        with pytest.raises(ProjectionOutdated, match="version 2, and this process has version 1"):
            await old.follower.catch_up(late)
    with pytest.raises(ProjectionOutdated):
        await old.store.catch_up("labels")
    assert await contents(store, "text") == [("s0", "6"), ("s1", "5")]
    await new.store.catch_up("labels")
    assert await contents(store, "text") == [("s0", "8"), ("s1", "7")]
    assert await left_behind(store.engine) == []


async def test_a_table_that_is_just_swapped_is_waited_for(
    persistent_backend: Backend, store: MetadataStore, process: Callable[..., Process]
) -> None:
    """It is of no version while it is; where DDL commits by itself, others see that."""
    worker = process(labels(1))
    await worker.ready()
    await write_metadata(store)
    claim = await worker.take()
    await worker.follower.catch_up(claim)
    await write_metadata(store, 2, 5)
    for version in (0, 1):
        async with store.engine.begin() as connection:
            await connection.execute(
                text("UPDATE agent_checkpoints SET version = :v WHERE projection = 'labels'"),
                {"v": version},
            )
        if version == 0:
            with pytest.raises(RebuildUnderWay, match="at this moment: wait"):
                await worker.follower.catch_up(claim)
            assert await contents(store, "value") == [("s0", "4"), ("s1", "3")]
    await worker.follower.catch_up(claim)
    assert await contents(store, "value") == [("s0", "6"), ("s1", "5")]


async def contents(store: MetadataStore, column: str) -> list[Any]:
    async with store.engine.connect() as connection:
        query = text(f"SELECT session_id, {column} FROM labels ORDER BY 1")
        return [tuple(row) for row in await connection.execute(query)]
