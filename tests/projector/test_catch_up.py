"""Asynchronous projections: each event is applied once and in order, or its stream is parked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataStore, OutcomeUnknown, ProjectionFailed, TablesMissing
from eventmeta.projector import worker
from projections import AppliedProjection
from tests.support.backends import Backend
from tests.support.sample_projections import (
    follower_of,
    log_of,
    noted,
    rows,
    tag,
    tags,
    tags_of,
    trail,
    trail_of,
    untag,
)


async def catch_up(store: MetadataStore, name: str, batch_size: int = 1_000) -> int:
    """How many events were applied, in batches of a size."""
    follower = await follower_of(store, name, batch_size)
    async with follower.lease.held() as claim:
        assert claim
        return await follower.catch_up(claim)


async def checkpoint(store: MetadataStore, name: str) -> int:
    return (await store.status()).projections[name].checkpoint


async def fill(store: MetadataStore, count: int = 12) -> None:
    """Events of three sessions, those of our projections among others."""
    for n in range(count):
        session = f"s{n % 3}"
        await asyncio.gather(
            store.append(session, noted(n)),
            store.append(session, tag(f"t{n % 2}") if n % 4 else untag("t0")),
            store.session(session).set_metadata({"n": n}),
        )


# --- Batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 1_000])
async def test_batches_of_any_size(store: MetadataStore, size: int) -> None:
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    await fill(store)
    for name in ("tags", "trail"):
        assert await catch_up(store, name, size) == 12
        assert await catch_up(store, name, size) == 0
    log = await log_of(store)
    assert await rows(store, "tags") == tags_of(log)
    assert await rows(store, "trail") == trail_of(log)


@pytest.mark.parametrize(("events", "batches"), [(10, [4, 4, 2]), (8, [4, 4]), (0, [0])])
async def test_a_batch_is_one_transaction(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, events: int, batches: list[int]
) -> None:
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    for n in range(events):
        await store.append("s", noted(n))
        await store.append("s", tag(str(n)))
    folded: list[None] = []
    committed: list[None] = []
    fold = store.log.database.dialect.fold

    async def counted(program: Any) -> Any:
        folded.append(None)
        return await fold(program)

    def commits(_: Any) -> None:
        committed.append(None)

    for name in ("tags", "trail"):
        follower = await follower_of(store, name, 4)
        claim = await follower.lease.take()
        assert claim
        horizon = await store.horizon()
        monkeypatch.setattr(store.log.database.dialect, "fold", counted)
        sqlalchemy_event.listen(store.engine.sync_engine, "commit", commits)
        steps = [await follower.mover.step(claim, horizon)]
        while not steps[-1].caught_up:
            steps.append(await follower.mover.step(claim, horizon))
        sqlalchemy_event.remove(store.engine.sync_engine, "commit", commits)
        monkeypatch.undo()
        found = [step.events for step in steps]
        # The last event of all may be of the other projection.
        assert found == batches or (found == [*batches, 0] and name == "trail"), found
        assert len(folded if name == "tags" else committed) == len(steps)
        committed.clear()


async def test_a_projection_begins_with_the_first_event(store: MetadataStore) -> None:
    """However late it is registered, and without events of its own too."""
    await fill(store)
    store.register(tags())
    store.register(trail())
    store.register(trail("idle", types=("never",)))
    await store.create_tables()
    await store.catch_up()
    log = await log_of(store)
    assert await rows(store, "tags") == tags_of(log)
    assert await rows(store, "trail") == trail_of(log)
    assert await checkpoint(store, "idle") == log[-1].position


async def test_the_checkpoint_passes_what_does_not_concern_it(store: MetadataStore) -> None:
    store.register(trail(types=("rare",)))
    store.register(tags())
    await store.create_tables()
    for _ in range(2):
        await fill(store, 3)
        await store.catch_up()
        assert await checkpoint(store, "trail") == await store.horizon()
    assert await rows(store, "trail") == []


async def test_a_low_position_held_open_is_not_passed(
    postgresql_backend: Backend, store: MetadataStore
) -> None:
    """Its checkpoint would be beyond an event that it has not seen."""
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    async with store.engine.connect() as connection:
        low = await store.append("low", noted(), connection=connection)
        await store.append("low", tag("x"), connection=connection)
        for n in range(3):
            await store.append("high", noted(n))
        for name in ("tags", "trail"):
            assert await catch_up(store, name) == 0
            assert await checkpoint(store, name) < low.position
        assert await rows(store, "trail") == []
        await connection.commit()
    await store.catch_up()
    log = await log_of(store)
    assert len(await rows(store, "trail")) == 2
    assert await rows(store, "trail") == trail_of(log)
    assert await rows(store, "tags") == tags_of(log)


# --- Parking ------------------------------------------------------------------------------------


async def parked(store: MetadataStore, name: str) -> list[tuple[str, int, int]]:
    return [
        (each.stream_id, each.position, each.attempts) for each in await store.parked_streams(name)
    ]


@pytest.mark.parametrize("size", [1, 2, 1_000])
async def test_a_failing_event_parks_its_stream_alone(store: MetadataStore, size: int) -> None:
    refused = ["bad"]
    store.register(trail(refused=refused))
    store.register(trail("other"))
    await store.create_tables()
    await store.catch_up()
    await store.append("a", noted(1))
    await store.append("b", noted(1))
    bad = await store.append("a", noted("bad"))
    await store.append("b", noted(2))
    await store.append("a", noted(2))
    assert await catch_up(store, "trail", size) == 5
    await store.append("a", noted(3))
    await store.append("b", noted(3))
    assert await catch_up(store, "trail", size) == 2
    assert await catch_up(store, "other", size) == 7
    assert await rows(store, "other") == trail_of(await log_of(store))
    (found,) = await store.parked_streams("trail")
    assert found[:3] == ("a", "session", bad.position)
    assert (found.error, found.attempts) == ("ValueError: bad is refused", 1)
    assert found.parked_at.tzinfo is not None
    assert [row[:2] for row in await rows(store, "trail")] == [("a", "1"), ("b", "1,2,3")]
    status = (await store.status()).projections["trail"]
    assert (status.parked_streams, status.lag_events) == (1, 0)

    assert await store.retry("trail") == await store.parked_streams("trail")
    assert await parked(store, "trail") == [("a", bad.position, 2)]
    assert [row[:2] for row in await rows(store, "trail")] == [("a", "1"), ("b", "1,2,3")]

    refused.clear()
    assert await store.retry("trail") == []
    assert await rows(store, "trail") == trail_of(await log_of(store))
    await store.append("a", noted(4))
    await store.catch_up()
    log = await log_of(store)
    assert await rows(store, "trail") == await rows(store, "other") == trail_of(log)


async def await_a_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    task.cancel()
    await task


async def raise_a_group() -> None:
    raise BaseExceptionGroup("of tasks", [asyncio.CancelledError(), ValueError("x")])


def cancelled_within(name: str, act: Callable[[], Awaitable[None]]) -> AppliedProjection:
    """One whose `apply` meets a cancellation that is not its own, at an ``n`` that is "bad"."""
    inner = trail(name)

    async def apply(connection: Any, events: Sequence[Any], tables: Any) -> None:
        if any(event.data["n"] == "bad" for event in events):
            await act()
        await inner.apply(connection, events, tables)

    return replace(inner, apply=apply)


@pytest.mark.parametrize("act", [await_a_cancelled_task, raise_a_group])
async def test_a_cancellation_of_something_else_parks_the_stream(
    store: MetadataStore, act: Callable[[], Awaitable[None]]
) -> None:
    store.register(cancelled_within("trail", act))
    store.register(trail("other"))
    await store.create_tables()
    async with store.projector():
        bad = await store.append("a", noted("bad"))
        last = await store.append("b", noted(2))
        for name in ("trail", "other"):
            await store.wait_for(last.position, name, timeout=10)
    assert await parked(store, "trail") == [("a", bad.position, 1)]
    assert [row[0] for row in await rows(store, "trail")] == ["b"]


@pytest.mark.parametrize("act", [await_a_cancelled_task, raise_a_group])
async def test_a_cancellation_of_something_else_refuses_an_append(
    store: MetadataStore, act: Callable[[], Awaitable[None]]
) -> None:
    store.register(cancelled_within("trail", act), inline=True)
    await store.create_tables()
    with pytest.raises(ProjectionFailed, match=r"Cancelled|of tasks"):
        await store.append("a", noted("bad"))
    await store.append("a", noted(2))
    assert [row[:2] for row in await rows(store, "trail")] == [("a", "1")]


async def test_retrying_ends_at_the_next_event_that_fails(store: MetadataStore) -> None:
    refused = [1, 3]
    store.register(trail(refused=refused))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append("a", noted(n)) for n in range(5)]
    await store.catch_up()
    assert await parked(store, "trail") == [("a", log[1].position, 1)]
    refused.remove(1)
    await store.retry("trail")
    assert [each[:2] for each in await parked(store, "trail")] == [("a", log[3].position)]
    assert [row[1] for row in await rows(store, "trail")] == ["1,2,3"]
    refused.clear()
    assert await store.retry("trail") == []
    assert await rows(store, "trail") == trail_of(log)


async def test_what_the_database_refuses_parks_the_stream(store: MetadataStore) -> None:
    store.register(tags())
    await store.create_tables()
    await store.catch_up()
    bad = await store.append("a", tag("x", None))
    await store.append("a", tag("y"))
    await store.append("b", tag("z"))
    await store.catch_up()
    assert await parked(store, "tags") == [("a", bad.position, 1)]
    assert [row[:2] for row in await rows(store, "tags")] == [("b", "z")]
    assert len(await store.retry("tags")) == 1


async def test_a_key_that_exists_parks_the_stream_at_once(store: MetadataStore) -> None:
    """Nobody else adds rows, so to wait for another writer would be in vain."""
    projection = trail()

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        values = [{"stream_id": "x", "seen": "", "last": each.position} for each in events]
        await connection.execute(tables[0].insert(), values)

    store.register(replace(projection, apply=apply))
    await store.create_tables()
    await store.catch_up()
    await store.append("a", noted())
    second = await store.append("b", noted())
    async with asyncio.timeout(5):
        await store.catch_up()
    assert await parked(store, "trail") == [("b", second.position, 1)]


@pytest.mark.parametrize("error", [OutcomeUnknown("gone"), TablesMissing("gone")])
async def test_what_passes_parks_nothing(store: MetadataStore, error: Exception) -> None:
    failing = [error]
    projection = trail()

    async def apply(*arguments: Any) -> None:
        if failing:
            raise failing.pop()
        await projection.apply(*arguments)

    store.register(replace(projection, apply=apply))
    await store.create_tables()
    await store.catch_up()
    await store.append("a", noted())
    with pytest.raises(type(error)):
        await store.catch_up()
    assert await parked(store, "trail") == []
    await store.catch_up()
    assert await rows(store, "trail") == trail_of(await log_of(store))


async def test_a_missing_table_parks_nothing(store: MetadataStore) -> None:
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    await store.append("a", noted())
    await store.append("a", tag("x"))
    for name in ("tags", "trail"):
        async with store.engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {name} RENAME TO away"))
        with pytest.raises(TablesMissing):
            await store.catch_up(name)
        assert await parked(store, name) == []
        async with store.engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE away RENAME TO {name}"))
        await store.catch_up(name)
    log = await log_of(store)
    assert await rows(store, "tags") == tags_of(log)
    assert await rows(store, "trail") == trail_of(log)


async def test_a_lost_connection_is_had_again(
    server_backend: Backend, store: MetadataStore, engine: AsyncEngine
) -> None:
    """Cut off in the middle of a batch, which is then applied once."""
    projection, cuts = trail(), [1, 2]

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        await projection.apply(connection, events[:1], tables)
        if cuts and cuts.pop():
            await cut_off(connection, engine, server_backend)
        await projection.apply(connection, events[1:], tables)

    store.register(replace(projection, apply=apply))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append("a", noted(n)) for n in range(3)]
    await store.catch_up()
    assert cuts == []
    assert await store.parked_streams("trail") == []
    assert await rows(store, "trail") == trail_of(log)


async def cut_off(connection: Any, engine: AsyncEngine, backend: Backend) -> None:
    asked, kill = {
        "postgresql": ("pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mariadb": ("connection_id()", "KILL {}"),
    }[backend.name]
    number = await connection.scalar(text(f"SELECT {asked}"))
    other = create_async_engine(engine.url)
    async with other.connect() as killer:
        await killer.execute(text(kill.format(number)))
    await other.dispose()


async def test_a_broken_projection_does_not_hold_up_others(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that fails in a way that nobody has thought of."""
    store.register(trail("broken"))
    store.register(trail())
    await store.create_tables()
    make_current = worker.make_current

    async def failing(database: Any, registered: Any, *arguments: Any) -> Any:
        if registered.projection.name == "broken":
            raise ZeroDivisionError
        return await make_current(database, registered, *arguments)

    monkeypatch.setattr(worker, "make_current", failing)
    async with store.projector():
        event = await store.append("a", noted())
        await store.wait_for(event.position, "trail")
    assert len(await rows(store, "trail")) == 1


@pytest.mark.parametrize("inline", [True, False])
async def test_others_on_a_shared_connection_are_in_no_ones_way(
    store: MetadataStore, inline: bool
) -> None:
    """In memory there is one connection, on which anyone's rollback is everyone's."""
    projection, disturbed = trail(), iter([True])

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        await projection.apply(connection, events, tables)
        if next(disturbed, False):
            async with store.engine.connect() as other:
                await other.execute(text("SELECT 1"))

    store.register(replace(projection, apply=apply), inline=inline)
    await store.create_tables()
    async with store.engine.begin() as app:
        await app.execute(text("CREATE TABLE own (n INTEGER)"))
    await store.append("a", noted(1))
    await store.catch_up()
    async with store.engine.connect() as app:
        await app.execute(text("INSERT INTO own VALUES (1)"))
        waiting = asyncio.create_task(store.append("a", noted(2)))
        await asyncio.sleep(0.05)
        await app.rollback()
    await waiting
    await store.catch_up()
    assert await rows(store, "own") == []
    log = await log_of(store)
    assert len(log) == 2
    assert await rows(store, "trail") == trail_of(log)
