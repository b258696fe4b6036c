"""A cancelled write is complete or absent, and can be repeated under the same event id."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    ItemAlreadyPopped,
    MetadataSession,
    MetadataStore,
    NewEvent,
    new_event_id,
    verify_projection,
)
from eventmeta.core.per_loop import PerLoop
from eventmeta.dialects.sqlite.driver import SQLite
from tests.conftest import all_returned, watch_connections
from tests.support.faults import Outcome, _CancelledAt, cancel_at, cancel_everywhere
from tests.support.helpers import contents, users

State = tuple[list[str], dict[str, Any]]
Act = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Write:
    """A write, and what it makes of items a, b, c and metadata {"k": 1, "l": 2}."""

    act: Act
    items: list[str]
    metadata: dict[str, Any]
    items_twice: list[str] | None = None
    """What it makes of the items when it is done once more, if that differs."""

    @property
    def after(self) -> State:
        return self.items, self.metadata

    @property
    def twice(self) -> State:
        return self.items if self.items_twice is None else self.items_twice, self.metadata


def append(
    store: MetadataStore, session: MetadataSession, event_id: str | None = None, **options: Any
) -> Awaitable[Any]:
    event = NewEvent("noted", {"x": 1}, event_id=event_id)
    return store.append(session.session_id, event, **options)


BEFORE: State = (["a", "b", "c"], {"k": 1, "l": 2})
EVENTS_BEFORE = 2
WRITES = {
    "set": Write(
        lambda store, session, **options: session.set_metadata({"k": 3}, **options),
        BEFORE[0],
        {"k": 3, "l": 2},
    ),
    "add": Write(
        lambda store, session, **options: session.add_items(users("d", "e"), **options),
        [*BEFORE[0], "d", "e"],
        BEFORE[1],
        [*BEFORE[0], "d", "e", "d", "e"],
    ),
    "pop": Write(
        lambda store, session, **options: session.pop_item(**options),
        BEFORE[0][:-1],
        BEFORE[1],
        BEFORE[0][:-2],
    ),
    "delete": Write(
        lambda store, session, **options: session.delete_metadata(["k"], **options),
        BEFORE[0],
        {"l": 2},
    ),
    "clear": Write(lambda store, session, **options: session.clear_session(**options), [], {}),
    "append": Write(append, *BEFORE),
}
COMPACTION = Write(
    lambda store, session: session._atomic_replace_items(users("x", "y")), ["x", "y"], BEFORE[1]
)
CASES = [
    *(pytest.param(write, True, id=f"{name}, known id") for name, write in WRITES.items()),
    *(pytest.param(write, False, id=f"{name}, new id") for name, write in WRITES.items()),
    pytest.param(COMPACTION, False, id="compaction"),
]
each_write = pytest.mark.parametrize(("write", "known"), CASES)
"""With an id of the caller's; and without, which is one statement on PostgreSQL if it can be."""

early_and_late = pytest.mark.parametrize("late", [False, True], ids=["early", "late"])


@dataclass(frozen=True)
class Attempt:
    """A write to a session of its own."""

    store: MetadataStore
    session: MetadataSession
    write: Write
    event_id: str | None

    @classmethod
    async def prepare(cls, store: MetadataStore, write: Write, known: bool, number: int) -> Attempt:
        session = store.session(f"s{number}")
        await session.add_items(users(*BEFORE[0]))
        await session.set_metadata(BEFORE[1])
        return cls(store, session, write, new_event_id() if known else None)

    def act(self, **options: Any) -> Awaitable[Any]:
        if self.event_id:
            options["event_id"] = self.event_id
        return self.write.act(self.store, self.session, **options)

    async def recorded(self) -> list[str]:
        """The ids of the events that came of it; the versions must have no holes."""
        events = [entry.event for entry in await self.session.history()]
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        return [event.event_id for event in events[EVENTS_BEFORE:]]

    async def check(self) -> bool:
        """After it was cancelled: it is complete or absent, and settled; a retry completes it.

        Under the same event id, a retry does nothing twice. Without one it is another write.
        """
        recorded, found = await self.recorded(), await state(self.session)
        while recorded != (again := await self.recorded()):  # a server still ends what was left
            recorded, found = again, await state(self.session)
        assert len(recorded) <= 1
        assert recorded == [] or self.event_id in (None, recorded[0])
        assert found == (self.write.after if recorded else BEFORE)
        # The writer takes one command after the other: with this one, what was under way has ended.
        await self.store.session("other").set_metadata({"next": self.session.session_id})
        assert await self.recorded() == recorded, "CancelledError came too early"
        try:
            await self.act()
        except ItemAlreadyPopped:
            assert recorded
            assert self.event_id
        if self.event_id:
            assert await self.recorded() == [self.event_id]
        twice = bool(recorded) and not self.event_id
        assert await state(self.session) == (self.write.twice if twice else self.write.after)
        return bool(recorded)


async def state(session: MetadataSession) -> State:
    return contents(await session.get_items()), await session.get_metadata()


# --- At each await of the caller -----------------------------------------------------------------


@each_write
@early_and_late
async def test_the_caller_is_cancelled_at_any_point(
    store: MetadataStore, write: Write, known: bool, late: bool
) -> None:
    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        attempt = await Attempt.prepare(store, write, known, point)
        outcome = await cancel_at(point, attempt.act, late=late)
        assert outcome.cancelled == outcome.reached
        assert outcome.error is None
        await attempt.check()
    assert point > 1
    assert await verify_projection(store) == []


@early_and_late
async def test_the_first_call_is_cancelled_at_any_point(url: str, late: bool) -> None:
    """When there are no tables yet, nor a connection."""
    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        engine, name = create_async_engine(url), f"s{point}"
        checked_out = watch_connections(engine)
        session = MetadataSession(name, engine=engine, create_tables=True)
        outcome = await cancel_at(point, partial(session.set_metadata, {"k": 1}), late=late)
        # Some drivers lose a cancellation that comes when they have just connected.
        assert outcome.error is None
        recorded = await session.history() if await tables_exist(engine) else []
        assert outcome.cancelled or recorded
        await session.set_metadata({"k": 1})
        assert len(await session.history()) == len(recorded) + 1
        assert await session.get_metadata() == {"k": 1}
        assert await verify_projection(MetadataStore(engine)) == []
        await all_returned(checked_out)
        await engine.dispose()
    assert point > 2


async def tables_exist(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: inspect(sync).has_table("agent_events"))


# --- At each await of the transaction ------------------------------------------------------------


class _CancelledMeanwhile(_CancelledAt[Any]):
    """Awaits a commit, and cancels the given task when the commit is at its n-th suspension."""

    def __init__(
        self, awaitable: Awaitable[Any], point: int, whom: Callable[[], asyncio.Task[Any] | None]
    ) -> None:
        super().__init__(awaitable, point, late=False)
        self._whom = whom

    def _suspended(self, waiting_for: Any) -> None:
        self._left -= 1
        if self._left == 0:
            task = self._whom()
            assert task is not None
            task.cancel()


def take_new_writer(store: MetadataStore) -> None:
    """Have the next call make a writer, which takes the log's ``commit`` as it is then."""
    log = store._log
    log._writer = PerLoop(log._make_writer)


async def cancelled_commits(
    store: MetadataStore, write: Write, known: bool, monkeypatch: pytest.MonkeyPatch, whom: str
) -> AsyncIterator[tuple[Attempt, Outcome[Any]]]:
    """Make the write, and cancel someone when its transaction is at suspension 1, 2, 3, …"""
    appender = store._log.appender
    commit, running = appender.commit, dict[str, asyncio.Task[Any] | None]()
    steps: list[_CancelledMeanwhile] = []

    async def disturbed(*given: Any, **options: Any) -> Any:
        running["writer"] = asyncio.current_task()
        call = commit(*given, **options)
        steps.append(_CancelledMeanwhile(call, len(steps) + 1, lambda: running[whom]))
        return await steps[-1]

    while not steps or steps[-1].reached:
        attempt = await Attempt.prepare(store, write, known, len(steps))
        with monkeypatch.context() as patch:
            patch.setattr(appender, "commit", disturbed)
            take_new_writer(store)
            caller = running["caller"] = asyncio.ensure_future(attempt.act())
            await asyncio.wait([caller])
        take_new_writer(store)
        error = None if caller.cancelled() else caller.exception()
        assert error is None
        yield attempt, Outcome(len(steps), steps[-1].reached, caller.cancelled(), None, None)


@each_write
async def test_the_caller_is_cancelled_while_the_transaction_is_at_any_point(
    store: MetadataStore, write: Write, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    async for attempt, outcome in cancelled_commits(store, write, known, monkeypatch, "caller"):
        assert outcome.cancelled == outcome.reached
        recorded.append(await attempt.check())
    assert len(recorded) > 1
    assert all(recorded), "what has begun is carried out"
    assert await verify_projection(store) == []


@each_write
async def test_the_loop_is_shut_down_while_the_transaction_is_at_any_point(
    persistent_url: str,
    store: MetadataStore,
    write: Write,
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the writer's own task is cancelled, in the middle of its transaction."""
    recorded = []
    async for attempt, outcome in cancelled_commits(store, write, known, monkeypatch, "writer"):
        assert outcome.cancelled == outcome.reached
        recorded.append(await attempt.check())
    assert len(recorded) > 1
    assert recorded[-1]
    assert await verify_projection(store) == []


# --- Others in the same batch --------------------------------------------------------------------


async def test_a_cancelled_caller_harms_no_other(store: MetadataStore) -> None:
    sessions = [store.session(f"s{n}") for n in range(20)]
    tasks = [asyncio.create_task(session.set_metadata({"k": 1})) for session in sessions]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks[::2])
    for session in sessions[1::2]:
        assert await session.get_metadata() == {"k": 1}
    for session in sessions[::2]:
        entries = await session.history()
        assert await session.get_metadata() == ({"k": 1} if entries else {})


# --- In the caller's own transaction -------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
@early_and_late
async def test_a_transaction_of_the_callers_is_cancelled_at_any_point(
    persistent_url: str, engine: AsyncEngine, store: MetadataStore, name: str, late: bool
) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orders (event_id VARCHAR(40))")

    async def order(attempt: Attempt) -> None:
        try:
            async with engine.begin() as connection:
                insert = text("INSERT INTO orders VALUES (:event_id)")
                await connection.execute(insert, {"event_id": attempt.event_id})
                await attempt.act(connection=connection)
                last = {"last": attempt.event_id}
                await store.session("orders").set_metadata(last, connection=connection)
        except asyncio.CancelledError:
            # Nothing is locked any more.
            await store.session("cancelled orders").set_metadata({"last": attempt.event_id})
            raise

    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        attempt = await Attempt.prepare(store, WRITES[name], True, point)
        outcome = await cancel_at(point, partial(order, attempt), late=late)
        assert outcome.cancelled == outcome.reached
        async with engine.connect() as connection:
            count = text("SELECT count(*) FROM orders WHERE event_id = :event_id")
            ordered = await connection.scalar(count, {"event_id": attempt.event_id})
        assert ordered == len(await attempt.recorded())
        await attempt.check()
    assert point > 2
    assert await verify_projection(store) == []


# --- Reads ---------------------------------------------------------------------------------------

READS: dict[str, Callable[[MetadataStore, MetadataSession], Awaitable[Any]]] = {
    "items": lambda store, session: session.get_items(),
    "metadata": lambda store, session: session.get_metadata(),
    "the past": lambda store, session: session.get_metadata(as_of=1),
    "history": lambda store, session: session.history(),
    "search": lambda store, session: store.find_sessions_by_metadata("k", 1),
    "horizon": lambda store, session: store.horizon(),
}


@pytest.mark.parametrize("name", READS)
@early_and_late
async def test_a_read_is_cancelled_at_any_point(
    store: MetadataStore, name: str, late: bool
) -> None:
    session = (await Attempt.prepare(store, COMPACTION, False, 1)).session

    def read() -> Awaitable[Any]:
        return READS[name](store, session)

    expected = await read()
    outcomes = [outcome async for outcome in cancel_everywhere(read, late=late)]
    assert len(outcomes) > 1
    assert all(outcome.cancelled for outcome in outcomes[:-1])
    assert outcomes[-1].result == expected
    assert await state(session) == BEFORE


async def test_a_cancelled_reader_harms_no_other(store: MetadataStore) -> None:
    session = (await Attempt.prepare(store, COMPACTION, False, 1)).session
    tasks = [asyncio.create_task(session.get_metadata()) for _ in range(30)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result == BEFORE[1] for result in results[1::2])


@pytest.mark.parametrize("in_memory", [True, False])
async def test_the_thread_of_a_cancelled_call_has_ended(tmp_path: Path, in_memory: bool) -> None:
    """Or it would tell an event loop that may be closed by then."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{'' if in_memory else tmp_path / 'x.db'}")
    dialect = MetadataStore(engine).log.database.dialect
    assert isinstance(dialect, SQLite)
    began, ended = threading.Event(), threading.Event()

    def work(*_: Any) -> None:
        began.set()
        time.sleep(0.1)
        ended.set()

    call = asyncio.create_task(dialect._in_thread(work))
    await asyncio.to_thread(began.wait)
    for _ in range(3):
        call.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
    await engine.dispose()


async def test_a_transaction_that_is_cancelled_as_it_begins_has_not_begun() -> None:
    """In memory all share one connection, on which nobody could begin another."""
    async with MetadataStore.from_url("sqlite+aiosqlite://") as store:
        await store.create_tables()
        dialect = store.log.database.dialect
        assert isinstance(dialect, SQLite)

        async def begin() -> None:
            async with dialect.transaction():
                raise AssertionError("it was cancelled before")

        busy = asyncio.create_task(dialect._in_thread(lambda *_: time.sleep(0.1)))
        await asyncio.sleep(0.02)
        beginning = asyncio.create_task(begin())
        await asyncio.sleep(0.02)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        await busy
        async with asyncio.timeout(5):
            await store.session("s").set_metadata({"k": 1})


async def test_a_feed_is_cancelled_at_any_point(store: MetadataStore) -> None:
    await Attempt.prepare(store, COMPACTION, False, 1)

    async def read() -> list[int]:
        return [event.position async for event in store.events()]

    expected = await read()
    outcomes = [outcome async for outcome in cancel_everywhere(read)]
    assert outcomes[-1].result == expected
    assert all(outcome.cancelled for outcome in outcomes[:-1])
