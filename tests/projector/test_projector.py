"""`store.projector()`, `wait_for` and `status`: keeping up, knowing when, and knowing how far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import InvalidInput, MetadataStore, ProjectionBehind, UnknownProjection
from eventmeta.database import retry as retrying
from eventmeta.projector import checkpoints, worker
from eventmeta.projector.lease import Lease
from tests.support.backends import Backend
from tests.support.processes import run_python
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
)


@pytest.fixture
async def kept(store: MetadataStore) -> AsyncIterator[MetadataStore]:
    """A store with an asynchronous projection of each kind, caught up with nothing."""
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    yield store
    log = await log_of(store)
    await store.catch_up()
    assert await rows(store, "tags") == tags_of(log)
    parked = {each.stream_id for each in await store.parked_streams("trail")}
    expected = [row for row in trail_of(log) if row[0] not in parked]
    assert [row for row in await rows(store, "trail") if row[0] not in parked] == expected


# --- The projector ------------------------------------------------------------------------------


async def test_it_keeps_up_with_the_writes_of_its_process(
    kept: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken up by them: it would wait for a minute otherwise."""
    monkeypatch.setattr(worker, "MIN_POLL", 60.0)
    monkeypatch.setattr(checkpoints, "LEASE_MS", 600_000)
    async with asyncio.timeout(20), kept.projector(max_poll=60.0):
        for n in range(5):
            event = await kept.append("s", noted(n))
            await kept.wait_for(event.position, "trail")
            assert await rows(kept, "trail") == trail_of(await log_of(kept))


async def test_it_sees_what_others_write(kept: MetadataStore, persistent_url: str) -> None:
    other = create_async_engine(persistent_url)
    async with kept.projector():
        event = await MetadataStore(other).append("s", tag("x"))
        await kept.wait_for(event.position, "tags")
        assert len(await rows(kept, "tags")) == 1
    await other.dispose()


async def test_two_share_the_projections(kept: MetadataStore) -> None:
    async with kept.projector(batch_size=2), kept.projector(batch_size=3):
        events = await asyncio.gather(*(kept.append(f"s{n % 3}", noted(n)) for n in range(20)))
        last = max(event.position for event in events)
        await kept.wait_for(last, "trail")
        holders = {each.lease_holder for each in (await kept.status()).projections.values()}
        assert len(holders - {None}) in (1, 2)
    await asyncio.gather(*(kept.append(f"s{n % 3}", noted(n)) for n in range(5)))


async def test_the_second_goes_on_when_the_first_leaves(kept: MetadataStore) -> None:
    async with kept.projector():
        async with kept.projector():
            event = await kept.append("s", noted(1))
            await kept.wait_for(event.position, "trail")
        event = await kept.append("s", noted(2))
        await kept.wait_for(event.position, "trail", timeout=5)
    assert await rows(kept, "trail") == trail_of(await log_of(kept))


async def test_a_standby_asks_less_and_less_often(
    kept: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    take = Lease.take

    async def counted(lease: Lease) -> object:
        asked.append(lease.holder)
        return await take(lease)

    async with kept.projector():
        await asyncio.sleep(0.1)
        monkeypatch.setattr(Lease, "take", counted)
        async with kept.projector() as standby:
            await asyncio.sleep(0.6)
            count = asked.count(standby._holder)
    assert 2 <= count <= 2 * 8, "of each of the two, after 0, 10, 30, 70, 150, 310 ms"


async def test_it_leaves_no_lease_and_no_task(kept: MetadataStore) -> None:
    """And the fixture sees that it leaves no connection checked out."""
    before = asyncio.all_tasks()
    for pause in (0, 0.001, 0.01, 0.03, 0.1):
        async with kept.projector():
            await kept.append("s", noted())
            await asyncio.sleep(pause)
        assert asyncio.all_tasks() == before
        leases = [each.lease_holder for each in (await kept.status()).projections.values()]
        assert set(leases) == {None}


async def test_a_cancellation_meant_for_the_app_gets_through(kept: MetadataStore) -> None:
    async def app() -> None:
        async with kept.projector():
            await asyncio.sleep(0.05)
            leaving.set()

    leaving = asyncio.Event()
    task = asyncio.create_task(app())
    await leaving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leases = [each.lease_holder for each in (await kept.status()).projections.values()]
    assert set(leases) == {None}


async def test_it_ends_although_the_database_is_gone(
    server_backend: Backend, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it finds out as it gives its lease back, having waited until then."""
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(worker, "MIN_POLL", 60.0)
    monkeypatch.setattr(checkpoints, "LEASE_MS", 600_000)
    store = MetadataStore(create_async_engine(url))
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    async with asyncio.timeout(20):
        async with store.projector(max_poll=60.0):
            event = await store.append("s", noted())
            await store.wait_for(event.position, "trail")
            await drop(server_backend, store)
    await store.engine.dispose()


async def drop(backend: Backend, store: MetadataStore) -> None:
    """The database, with all connections to it."""
    name = store.engine.url.database
    admin = {"postgresql": "postgres", "mariadb": "mysql"}[backend.name]
    engine = create_async_engine(store.engine.url.set(database=admin), isolation_level="AUTOCOMMIT")
    force = " WITH (FORCE)" if backend.name == "postgresql" else ""
    async with engine.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {name}{force}"))
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()


async def test_it_waits_until_its_tables_are_there(url: str) -> None:
    store = MetadataStore(create_async_engine(url))
    store.register(trail())
    async with store.projector(max_poll=0.05):
        await asyncio.sleep(0.1)
        await store.create_tables()
        event = await store.append("s", noted())
        await store.wait_for(event.position, "trail")
    assert await rows(store, "trail") == trail_of([event])
    await store.engine.dispose()


LOOPS = """
import asyncio, sys
from sqlalchemy.ext.asyncio import create_async_engine
from eventmeta import MetadataStore
from tests.support.sample_projections import noted, rows, trail, trail_of, log_of

engine = create_async_engine(sys.argv[1])
store = MetadataStore(engine)
store.register(trail())

async def main(n):
    async with store.projector():
        event = await store.append("s", noted(n))
        await store.wait_for(event.position, "trail")
        return await rows(store, "trail") == trail_of(await log_of(store))

print([asyncio.run(main(n)) for n in range(3)])
"""


async def test_several_event_loops_and_a_quiet_end(
    store: MetadataStore, persistent_url: str
) -> None:
    """First of all in its process, so that it finds out by itself what server there is."""
    store.register(trail())
    await store.create_tables()
    done = await asyncio.to_thread(run_python, "-c", LOOPS, persistent_url)
    assert (done.stdout, done.stderr) == ("[True, True, True]\n", ""), done.stderr


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": True}, {"max_poll": 0}])
async def test_options_that_cannot_be(store: MetadataStore, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        store.projector(**options)


# --- wait_for -----------------------------------------------------------------------------------


async def test_waiting_for_what_is_there_already(kept: MetadataStore) -> None:
    event = await kept.append("s", noted())
    await kept.catch_up()
    await kept.wait_for(event.position, "trail", timeout=0)
    assert len(await rows(kept, "trail")) == 1
    await kept.wait_for(0, "trail", timeout=0)
    await kept.wait_for(event.position + 1_000, "metadata", timeout=0)


async def test_behind_in_time(kept: MetadataStore) -> None:
    event = await kept.append("s", noted())
    with pytest.raises(ProjectionBehind) as behind:
        await kept.wait_for(event.position, "trail", timeout=0.05)
    assert behind.value.projection == "trail"
    assert isinstance(behind.value, TimeoutError)
    assert f"not yet at {event.position}" in str(behind.value)


async def test_waiting_ends_when_it_is_there(kept: MetadataStore) -> None:
    event = await kept.append("s", noted())
    waiting = asyncio.create_task(kept.wait_for(event.position, "trail"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await kept.catch_up("trail")
    await waiting


async def test_what_is_parked_is_not_there(store: MetadataStore) -> None:
    refused = ["bad"]
    store.register(trail(refused=refused))
    await store.create_tables()
    before = await store.append("s", noted(1))
    bad = await store.append("s", noted("bad"))
    after = await store.append("s", noted(2))
    other = await store.append("t", noted(3))
    await store.catch_up()
    await store.wait_for(before.position, "trail", timeout=0)
    await store.wait_for(other.position, "trail", timeout=0)
    for event in (bad, after):
        with pytest.raises(ProjectionBehind, match="bad is refused"):
            await store.wait_for(event.position, "trail", timeout=0)
    refused.clear()
    await store.retry("trail")
    await store.wait_for(after.position, "trail", timeout=0)


async def test_names_and_positions_that_cannot_be() -> None:
    """Told before any I/O."""
    store = MetadataStore(create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing"))
    for call in (
        store.wait_for(1, "missing"),
        store.catch_up("missing"),
        store.rebuild("missing"),
        store.retry("missing"),
        store.parked_streams("missing"),
        store.replay("missing"),
    ):
        with pytest.raises(UnknownProjection, match="metadata, users"):
            await call
    wrong: tuple[Any, ...] = (-1, True, 1.5, "1")
    for position in wrong:
        with pytest.raises(InvalidInput):
            await store.wait_for(position, "metadata")


# --- status -------------------------------------------------------------------------------------


async def test_status_of_an_empty_database(store: MetadataStore) -> None:
    store.register(trail())
    await store.create_tables()
    status = await store.status()
    assert (status.head, status.horizon, status.oldest_open_append) == (0, 0, None)
    assert list(status.projections) == ["metadata", "users", "trail"]
    found = status.projections["trail"]
    assert (found.name, found.version, found.inline, found.checkpoint) == ("trail", None, False, 0)
    assert (found.lag_events, found.lag_seconds, found.parked_streams) == (0, 0.0, 0)
    assert (found.lease_holder, found.is_rebuilt) == (None, False)


async def test_status_tells_how_far_each_is(kept: MetadataStore) -> None:
    done = await kept.append("s", noted())
    await kept.catch_up()
    waiting = [await kept.append("s", noted()) for _ in range(3)]
    await kept.session("s").set_metadata({"a": 1})
    follower = await follower_of(kept, "trail")
    async with follower.lease.held():
        status = await kept.status()
    head = status.head
    assert status.horizon == head == (await log_of(kept))[-1].position
    found = status.projections["trail"]
    assert (found.version, found.checkpoint, found.lag_events) == (1, done.position, 3)
    age = (datetime.now(UTC) - waiting[0].recorded_at).total_seconds()
    assert age - 30 < found.lag_seconds <= age + timedelta(seconds=1).total_seconds()
    assert found.lease_holder == "tests"
    assert status.projections["tags"].lag_events == 0
    inline = status.projections["metadata"]
    assert (inline.inline, inline.checkpoint, inline.lag_events) == (True, head, 0)


async def test_status_tells_of_what_others_have_registered(
    store: MetadataStore, another_store: Callable[[], MetadataStore], persistent_backend: Backend
) -> None:
    """A process that watches over all need not register anything."""
    refused = ["bad"]
    store.register(tags())
    store.register(trail(refused=refused))
    await store.create_tables()
    await store.catch_up()
    follower = await follower_of(store, "tags")
    async with aclosing(store.subscribe("mailer")) as events:
        for event in (noted(1), noted("bad"), tag("x")):
            await store.append("s", event)
        await anext(events)
        await store.catch_up("trail")
        async with follower.lease.held():
            status = await another_store().status()
    registered = {name: each.is_registered for name, each in status.projections.items()}
    assert registered == {"metadata": True, "users": True, "tags": False, "trail": False}
    found = status.projections["tags"]
    assert (found.version, found.inline, found.checkpoint) == (1, False, 0)
    assert (found.lag_events, found.parked_streams, found.lease_holder) == (3, 0, "tests")
    assert 0.0 <= found.lag_seconds < 60.0
    found = status.projections["trail"]
    assert (found.checkpoint, found.lag_events, found.lag_seconds) == (status.horizon, 0, 0.0)
    assert (found.parked_streams, found.lease_holder) == (1, None)
    read = status.subscriptions["mailer"]
    assert (read.name, read.position, read.lag_events) == ("mailer", 0, 3)
    assert read.reader is not None
    assert (await store.status()).subscriptions["mailer"].reader is None
    refused.clear()
    await store.retry("trail")
    await store.catch_up()
    here = (await store.status()).projections.values()
    assert all(each.is_registered and each.lag_events == 0 for each in here)


async def test_status_tells_what_holds_readers_back(
    postgresql_backend: Backend, kept: MetadataStore
) -> None:
    async with kept.engine.connect() as connection:
        low = await kept.append("low", noted(), connection=connection)
        await kept.append("high", noted())
        status = await kept.status()
        assert status.oldest_open_append is not None
        assert status.oldest_open_append.after == status.horizon < low.position
        assert status.oldest_open_append.seconds is not None
        assert 0 <= status.oldest_open_append.seconds < 60
        assert status.projections["trail"].lag_events == 0
        await connection.commit()
    status = await kept.status()
    assert status.oldest_open_append is None
    assert status.projections["trail"].lag_events == 2


async def test_whose_append_is_open_may_be_hidden(
    postgresql_backend: Backend, kept: MetadataStore
) -> None:
    """PostgreSQL shows what others do only to those who may see it."""
    async with kept.engine.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS watcher"))
        await connection.execute(text("CREATE ROLE watcher"))
        await connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO watcher"))
        await connection.execute(text("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO watcher"))
    settings = {"server_settings": {"role": "watcher"}}
    watcher = create_async_engine(kept.engine.url, connect_args=settings)
    async with kept.engine.connect() as connection:
        await kept.append("low", noted(), connection=connection)
        status = await MetadataStore(watcher).status()
        assert status.oldest_open_append is not None
        assert status.oldest_open_append.seconds is None
    await watcher.dispose()
    async with kept.engine.begin() as connection:
        await connection.execute(text("DROP OWNED BY watcher"))
        await connection.execute(text("DROP ROLE watcher"))
