"""A rebuild leaves the old table serving until the new one takes its place, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    false,
    func,
    select,
    text,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta import (
    MetadataStore,
    NewEvent,
    OutcomeUnknown,
    RebuildFailed,
    RebuildUnderWay,
    verify_projection,
)
from eventmeta.dialects import projector as projecting
from eventmeta.dialects.mysql import projector as mysql
from eventmeta.projector import rebuild as rebuilding
from eventmeta.projector import throttle as pauses
from eventmeta.projector import worker
from eventmeta.projector.swap import Swapping
from projections import Projection, metadata_projection
from tests.conftest import LONG_VARIABLE
from tests.support.backends import Backend
from tests.support.rebuilding import (
    ASYNC,
    applied_in_order,
    async_metadata,
    left_behind,
    select_rows,
    trace,
)

LIVE = "agent_sessions_metadata"
STRIDE = 1 if LONG_VARIABLE in os.environ else 12
"""Of the statements at which a rebuild may be broken off, each n-th is tried, from a random one."""


async def execute(store: MetadataStore, *statements: str) -> None:
    async with store.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def fetch(store: MetadataStore, query: str) -> list[Any]:
    async with store.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def write_some(store: MetadataStore, sessions: int = 12) -> None:
    async def write(n: int) -> None:
        session = store.session(f"s{n:02}")
        await session.set_metadata({"n": n, "k": "v", "gone": 1})
        await session.delete_metadata(["gone"])
        await session.set_metadata({"k": [n]})

    await asyncio.gather(*(write(n) for n in range(sessions)))


async def check_complete(store: MetadataStore, rows: Any = None) -> None:
    assert await left_behind(store.engine) == []
    assert await store.schema_sql() == ""
    assert await verify_projection(store) == []
    if rows is not None:
        assert await select_rows(store, LIVE) == rows


# --- Without disturbance -------------------------------------------------------------------------


async def test_a_table_is_the_same_afterwards_also_the_second_time(store: MetadataStore) -> None:
    """In its names too: `create_tables` misses nothing."""
    await write_some(store)
    before = await select_rows(store, LIVE)
    for _ in range(3):
        rebuilt = await store.rebuild("metadata")
        assert (rebuilt.projection, rebuilt.position) == ("metadata", await store.horizon())
        await check_complete(store, before)
        await store.session("s00").set_metadata({"n": 0})
        before = await select_rows(store, LIVE)
        await store.create_tables()


async def test_a_corrupted_table_is_mended(store: MetadataStore) -> None:
    await write_some(store)
    before = await select_rows(store, LIVE)
    await execute(
        store,
        f"DELETE FROM {LIVE} WHERE session_id = 's01'",
        f"UPDATE {LIVE} SET value = '666' WHERE session_id = 's02'",
        f"UPDATE {LIVE} SET session_id = 'nobody' WHERE session_id = 's03'",
    )
    assert await verify_projection(store) != []
    await store.rebuild("metadata")
    await check_complete(store, before)


async def test_users_keep_their_sessions(store: MetadataStore) -> None:
    """The table that sessions refer to stays, and takes over the rows."""
    owners = []
    for n in range(4):
        await store.user(f"u{n}").set_metadata({"n": n})
        session = await store.create_session(f"u{n}")
        await session.add_items([{"role": "user", "content": "hello"}])
        owners.append((session.session_id, f"u{n}"))
    users = await fetch(store, "SELECT * FROM agent_users ORDER BY 1")
    await execute(
        store,
        "UPDATE agent_users SET metadata = 'x' WHERE user_id = 'u1'",
        "INSERT INTO agent_users SELECT 'u9', metadata, created_at, updated_at FROM agent_users "
        "WHERE user_id = 'u2'",
    )
    await store.rebuild("users")
    assert await fetch(store, "SELECT * FROM agent_users ORDER BY 1") == users
    query = "SELECT session_id, user_id FROM agent_sessions ORDER BY user_id"
    assert await fetch(store, query) == owners
    await check_complete(store)


async def test_names_that_the_app_gave_its_constraints(store: MetadataStore) -> None:
    made = async_metadata()
    made.table.append_constraint(CheckConstraint("session_id <> ''", name="ck_of_the_app"))
    store.register(made)
    await store.create_tables()
    await write_some(store)
    for _ in range(2):
        await store.rebuild("async_metadata")
        assert await select_rows(store, "async_metadata") == await select_rows(store, LIVE)
        await check_complete(store)


# --- Broken off ----------------------------------------------------------------------------------


class Faults:
    """Lets the n-th statement of a rebuild fail, or everything after it: as if the process died."""

    def __init__(self, store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1_000_000
        self.reached = False
        self.in_folds = True
        dialect = store.log.database.dialect
        fold, write_within = dialect.fold, dialect.write_within
        monkeypatch.setattr(
            dialect,
            "fold",
            lambda program: fold(self.counted(program) if self.in_folds else program),
        )
        monkeypatch.setattr(
            dialect,
            "write_within",
            lambda connection, program: write_within(connection, self.counted(program)),
        )
        for module in (projecting, mysql):
            monkeypatch.setattr(module, "execute", self.execute)

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.reached = True
            raise OutcomeUnknown("the connection was lost", None)

    def counted(self, program: Any) -> Any:
        """``program``, in which each statement, and the end, may be the last."""
        rows: Any = None
        while True:
            self.step()
            try:
                query = program.send(rows)
            except StopIteration as done:
                self.step()
                return done.value
            rows = yield query

    async def execute(self, connection: AsyncConnection, statements: Iterable[str]) -> None:
        for statement in statements:
            # A process that has died has given up its locks, too.
            if not statement.startswith(("SET ", "UNLOCK ", "PRAGMA ")):
                self.step()
            await connection.exec_driver_sql(statement)

    async def broken_off(self, store: MetadataStore, n: int, name: str) -> bool:
        """Rebuild until the n-th statement; whether there are so many."""
        self.left, self.reached = n, False
        try:
            await store.rebuild(name)
        except OutcomeUnknown:
            assert self.reached
        self.left = 1_000_000
        return self.reached


@pytest.fixture
def faults(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(store, monkeypatch)


async def expire(store: MetadataStore) -> None:
    """Let the leases end that the dead have left."""
    await execute(store, "UPDATE agent_checkpoints SET expires_at = 0")


@pytest.mark.each_dialect
@pytest.mark.parametrize("name", ["metadata", "users"])
async def test_a_rebuild_that_dies_at_any_statement_goes_on(
    store: MetadataStore, faults: Faults, name: str
) -> None:
    await write_some(store, 3)
    await store.user("u").set_metadata({"k": 1})
    n, broken = 1 + random.randrange(STRIDE), True
    while broken:
        broken = await faults.broken_off(store, n, name)
        await store.session(f"s{n % 3}").set_metadata({"n": n})
        await store.user(f"u{n}").set_metadata({"n": n})
        assert await verify_projection(store) == [], f"the old table serves after fault {n}"
        if broken:
            await expire(store)
            await store.rebuild(name)
        assert await verify_projection(store) == []
        assert await left_behind(store.engine) == []
        n += STRIDE
    assert n > 20, "so many there are at the least"
    await check_complete(store)


@pytest.mark.each_dialect
async def test_a_rebuild_of_several_tables_in_python_goes_on(
    store: MetadataStore, faults: Faults
) -> None:
    """All of its tables change places at once, and what is applied already is not so again."""
    faults.in_folds = False
    one, two = trace(), trace("trace2")

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        faults.step()
        await one.apply(connection, events, tables[:1])
        faults.step()
        await one.apply(connection, events, tables[1:])

    store.register(replace(one, tables=(*one.tables, *two.tables), apply=apply))
    await store.create_tables()
    n, broken, events = 1, True, 0
    while broken:
        events += 1
        await store.session(f"s{n % 3}").set_metadata({"n": n})
        broken = await faults.broken_off(store, n, "trace")
        if broken:
            await expire(store)
            await store.rebuild("trace")
        await store.catch_up("trace")
        for table in ("trace", "trace2"):
            assert len(await applied_in_order(store, table)) == events
        assert await left_behind(store.engine) == []
        n += 1
    await check_complete(store)


# --- Under way -----------------------------------------------------------------------------------


async def test_writers_and_readers_notice_nothing(
    persistent_backend: Backend, store: MetadataStore, another_store: Callable[[], MetadataStore]
) -> None:
    await write_some(store)
    rows = len(await select_rows(store, LIVE))
    done = asyncio.Event()
    other = another_store()

    counts = Counter[str]()

    async def write_and_read(own: MetadataStore, reader: MetadataStore, name: str) -> None:
        while not done.is_set():
            counts[name] += 1
            await own.session(name).set_metadata({"n": counts[name]})
            assert await reader.session(name).get_metadata() == {"n": counts[name]}, "stale"

    async def find(own: MetadataStore, name: str) -> None:
        while not done.is_set():
            counts[name] += 1
            assert await own.find_sessions_by_metadata("k", [7]) == ["s07"]
            ((count,),) = await fetch(own, f"SELECT count(*) FROM {LIVE}")
            assert count >= rows

    async def rebuild() -> None:
        try:
            for n in itertools.count():
                await store.rebuild("metadata")
                if n > 2 and len(counts) == 5 and min(counts.values()) > 10:
                    return
        finally:
            done.set()

    await asyncio.gather(
        write_and_read(store, other, "a"),
        write_and_read(store, other, "b"),
        write_and_read(other, store, "c"),
        find(other, "d"),
        find(another_store(), "e"),
        rebuild(),
    )
    await check_complete(store)


async def test_two_at_once(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a stage takes longer than a lease lasts."""
    monkeypatch.setattr("eventmeta.projector.checkpoints.LEASE_MS", 300)
    await write_some(store, 3)
    compare, compared = rebuilding.Rebuild._compare, asyncio.Event()
    waiting: list[None] = []

    async def slowly(*arguments: Any) -> None:
        if not waiting:
            waiting.append(None)
            await compared.wait()
        await compare(*arguments)

    monkeypatch.setattr(rebuilding.Rebuild, "_compare", slowly)
    first = asyncio.create_task(store.rebuild("metadata"))
    while not (await store.status()).projections["metadata"].is_rebuilt:
        await asyncio.sleep(0.01)
    for _ in range(4):
        with pytest.raises(RebuildUnderWay, match="wait for that"):
            await store.rebuild("metadata")
        await asyncio.sleep(0.2)
    compared.set()
    await first
    await check_complete(store)


async def test_one_that_has_just_been_done_is_not_done_again(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever looked at the version before it ended."""
    look, build, built = worker.checkpoint_of, rebuilding.Rebuild._build, list[str]()

    async def long_ago(*arguments: Any) -> Any:
        found = await look(*arguments)
        monkeypatch.setattr(worker, "checkpoint_of", look)
        await store.catch_up(ASYNC)
        return found

    async def counted(rebuild: rebuilding.Rebuild, *arguments: Any) -> None:
        built.append(rebuild.registered.projection.name)
        await build(rebuild, *arguments)

    store.register(async_metadata())
    await store.create_tables()
    monkeypatch.setattr(rebuilding.Rebuild, "_build", counted)
    monkeypatch.setattr(worker, "checkpoint_of", long_ago)
    await store.catch_up(ASYNC)
    assert built == [ASYNC]
    assert await left_behind(store.engine) == []


async def test_nobody_begins_while_another_clears_away(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it would lose its tables, which have the same names."""
    await store.session("s").set_metadata({"k": 1})
    clear_away = Swapping._clear_away

    async def met(swapping: Swapping) -> None:
        with pytest.raises(RebuildUnderWay):
            await store.rebuild("metadata")
        await clear_away(swapping)

    monkeypatch.setattr(Swapping, "_clear_away", met)
    await store.rebuild("metadata")
    monkeypatch.undo()
    assert not (await store.status()).projections["metadata"].is_rebuilt
    await check_complete(store)


async def test_whoever_dies_while_clearing_away_has_done_it(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left over is cleared away by the next rebuild."""

    async def die(swapping: Swapping) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(Swapping, "_clear_away", die)
    await store.session("s").set_metadata({"k": 1})
    with pytest.raises(ConnectionResetError):
        await store.rebuild("metadata")
    monkeypatch.undo()
    status = (await store.status()).projections["metadata"]
    assert (status.version, status.is_rebuilt) == (metadata_projection(MetaData()).version, False)
    await store.rebuild("metadata")
    await check_complete(store)


async def test_what_came_during_the_comparison_is_caught_up_before_the_swap(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For writers wait in the swap."""
    compare, stages = rebuilding.Rebuild._compare, list[str]()

    async def write_meanwhile(*arguments: Any) -> None:
        await compare(*arguments)
        await write_some(store, 5)

    monkeypatch.setattr(rebuilding.Rebuild, "_compare", write_meanwhile)
    await store.rebuild("metadata", progress=lambda progress: stages.append(progress.stage))
    assert list(dict.fromkeys(stages[stages.index("compare") :])) == ["compare", "catch up", "swap"]
    await check_complete(store)


async def write_tags(store: MetadataStore) -> None:
    for n in range(6):
        await store.append(f"s{n}", NewEvent("tagged", {"tag": "x"}))


def tags(by_stream: bool) -> Projection:
    """Counts the events that it sees, where each further one should count on."""
    table = Table("tags", MetaData(), Column("tag", String(20), primary_key=True))
    table.append_column(Column("n", Integer, nullable=False))

    def fold(events: Any) -> Any:
        tag = events.field("tag").label("tag")
        count = func.count().label("n")
        return select(tag, count, true().label("present"), false().label("restarted")).group_by(tag)

    return Projection("tags", 1, "session", frozenset({"tagged"}), table, fold, by_stream=by_stream)


@pytest.mark.parametrize("by_stream", [True, False])
async def test_a_select_that_depends_on_how_the_log_is_divided(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, by_stream: bool
) -> None:
    monkeypatch.setattr(rebuilding, "BATCH", 2)
    monkeypatch.setattr(store.log.database.dialect, "events_per_fill", 1)
    monkeypatch.setattr("eventmeta.database.retry.RETRY_SECONDS", 0.1)
    store.register(tags(by_stream))
    await store.create_tables()
    await execute(store, "INSERT INTO tags VALUES ('old', 7)")
    await write_tags(store)
    for _ in range(2):
        with pytest.raises(
            RebuildFailed, match="'tags' cannot be rebuilt, so the old table goes on"
        ):
            await store.rebuild("tags")
        assert await fetch(store, "SELECT * FROM tags") == [("old", 7)]
    await execute(store, "DELETE FROM tags")


async def test_the_planner_knows_the_new_table(postgresql_backend: Backend) -> None:
    """It would learn its size by and by only, and plan for an empty one until then."""
    async with postgresql_backend.database() as url, MetadataStore.from_url(url) as store:
        await store.create_tables()
        for n in range(3):
            await store.session(f"s{n}").set_metadata({"a": n, "b": n})
        await store.rebuild("metadata")
        known = f"SELECT reltuples FROM pg_class WHERE relname = '{LIVE}'"
        assert await fetch(store, known) == [(6,)]


async def test_pauses_are_for_those_who_write(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, sleeps = store.log, 0

    async def sleep(_: float) -> None:
        nonlocal sleeps
        sleeps += 1

    monkeypatch.setattr(type(log.database.dialect), "throttle_seconds", 0.01)
    monkeypatch.setattr(pauses, "asyncio", SimpleNamespace(sleep=sleep))
    await store.session("s").set_metadata({"a": 0})
    between = pauses.Pauses(log)
    await between.take()
    before = sleeps
    for _ in range(pauses.TURNS - 2):
        await between.take()
    assert sleeps == before, "nobody else writes"
    await between.take()
    assert sleeps == before + 1, "someone may wait who got no turn yet"
    for n in range(3):
        await store.session("s").set_metadata({"a": n})
        await between.take()
    assert sleeps == before + 4
