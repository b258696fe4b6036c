"""A cancelled write is complete or absent, and can be repeated under the same event id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from tests.conftest import all_returned, watch_connections
from tests.faults import Outcome, _CancelledAt, cancel_at, cancel_everywhere
from tests.helpers import item

State = tuple[list[str], dict[str, Any]]
Act = Callable[[MetadataStore, MetadataSession, str], Awaitable[Any]]


@dataclass(frozen=True)
class Write:
    """A write, and what it makes of items a, b, c and metadata {"k": 1, "l": 2}."""

    act: Act
    items: list[str]
    metadata: dict[str, Any]

    @property
    def after(self) -> State:
        return self.items, self.metadata


BEFORE: State = (["a", "b", "c"], {"k": 1, "l": 2})
WRITES = {
    "set": Write(
        lambda store, session, event_id: session.set_metadata({"k": 3}, event_id=event_id),
        BEFORE[0],
        {"k": 3, "l": 2},
    ),
    "add": Write(
        lambda store, session, event_id: session.add_items(
            [item("d"), item("e")], event_id=event_id
        ),
        [*BEFORE[0], "d", "e"],
        BEFORE[1],
    ),
    "pop": Write(
        lambda store, session, event_id: session.pop_item(event_id=event_id),
        BEFORE[0][:-1],
        BEFORE[1],
    ),
    "delete": Write(
        lambda store, session, event_id: session.delete_metadata(["k"], event_id=event_id),
        BEFORE[0],
        {"l": 2},
    ),
    "clear": Write(
        lambda store, session, event_id: session.clear_session(event_id=event_id), [], {}
    ),
    "append": Write(
        lambda store, session, event_id: store.append(
            session.session_id, NewEvent("noted", {"x": 1}, event_id=event_id)
        ),
        *BEFORE,
    ),
}
each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
early_and_late = pytest.mark.parametrize("late", [False, True], ids=["early", "late"])


@pytest.fixture
async def store(engine: AsyncEngine) -> MetadataStore:
    store = MetadataStore(engine)
    await store.create_tables()
    return store


async def prepared(store: MetadataStore, name: object) -> MetadataSession:
    session = store.session(f"s{name}")
    await session.add_items([item(content) for content in BEFORE[0]])
    await session.set_metadata(BEFORE[1])
    return session


async def state(session: MetadataSession) -> State:
    items: list[Any] = await session.get_items()
    return [entry["content"] for entry in items], await session.get_metadata()


async def is_recorded(session: MetadataSession, event_id: str) -> bool:
    """Whether the event is there, which must be so once at most, and the versions without holes."""
    events = [entry.event for entry in await session.history()]
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    found = [event for event in events if event.event_id == event_id]
    assert len(found) <= 1
    return bool(found)


async def check(
    store: MetadataStore, session: MetadataSession, write: Write, event_id: str
) -> bool:
    """After a cancelled write: it is complete or absent, and settled; a retry makes it complete."""
    recorded = await is_recorded(session, event_id)
    assert await state(session) == (write.after if recorded else BEFORE)
    # The writer takes one command after the other: with this one, what was under way has ended.
    await store.session("other").set_metadata({"next": event_id})
    assert await is_recorded(session, event_id) == recorded, "CancelledError came too early"
    try:
        await write.act(store, session, event_id)
    except ItemAlreadyPopped:
        assert recorded
    assert await is_recorded(session, event_id)
    assert await state(session) == write.after
    return recorded


# --- At each await of the caller -----------------------------------------------------------------


@each_write
@early_and_late
async def test_the_caller_is_cancelled_at_any_point(
    store: MetadataStore, write: Write, late: bool
) -> None:
    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        session, event_id = await prepared(store, point), new_event_id()

        act = partial(write.act, store, session, event_id)
        outcome = await cancel_at(point, act, late=late)
        assert outcome.cancelled == outcome.reached
        assert outcome.error is None
        await check(store, session, write, event_id)
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


async def cancelled_commits(
    store: MetadataStore, write: Write, monkeypatch: pytest.MonkeyPatch, whom: str
) -> AsyncIterator[tuple[MetadataSession, str, Outcome[Any]]]:
    """Make the write, and cancel someone when its transaction is at suspension 1, 2, 3, …"""
    log = store._database.log
    commit, running = log.commit, dict[str, asyncio.Task[Any] | None]()
    steps: list[_CancelledMeanwhile] = []

    async def disturbed(commands: Sequence[Any]) -> Any:
        running["writer"] = asyncio.current_task()
        steps.append(_CancelledMeanwhile(commit(commands), len(steps) + 1, lambda: running[whom]))
        return await steps[-1]

    while not steps or steps[-1].reached:
        session, event_id = await prepared(store, len(steps)), new_event_id()
        with monkeypatch.context() as patch:
            patch.setattr(log, "commit", disturbed)
            store._database._writers.clear()
            caller = running["caller"] = asyncio.ensure_future(write.act(store, session, event_id))
            await asyncio.wait([caller])
        store._database._writers.clear()
        error = None if caller.cancelled() else caller.exception()
        assert error is None
        yield (
            session,
            event_id,
            Outcome(len(steps), steps[-1].reached, caller.cancelled(), None, None),
        )


@each_write
async def test_the_caller_is_cancelled_while_the_transaction_is_at_any_point(
    store: MetadataStore, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    async for session, event_id, outcome in cancelled_commits(store, write, monkeypatch, "caller"):
        assert outcome.cancelled == outcome.reached
        recorded.append(await check(store, session, write, event_id))
    assert len(recorded) > 1
    assert all(recorded), "what has begun is carried out"
    assert await verify_projection(store) == []


@each_write
async def test_the_loop_is_shut_down_while_the_transaction_is_at_any_point(
    persistent_url: str, store: MetadataStore, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the writer's own task is cancelled, in the middle of its transaction."""
    recorded = []
    async for session, event_id, outcome in cancelled_commits(store, write, monkeypatch, "writer"):
        assert outcome.cancelled == outcome.reached
        recorded.append(await check(store, session, write, event_id))
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


@pytest.mark.parametrize("name", ["set", "add", "pop", "clear"])
@early_and_late
async def test_a_transaction_of_the_callers_is_cancelled_at_any_point(
    persistent_url: str, engine: AsyncEngine, store: MetadataStore, name: str, late: bool
) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orders (event_id VARCHAR(40))")

    async def order(session: MetadataSession, event_id: str) -> None:
        async with engine.begin() as connection:
            match name:
                case "set":
                    await session.set_metadata({"k": 3}, event_id=event_id, connection=connection)
                case "add":
                    items = [item("d"), item("e")]
                    await session.add_items(items, event_id=event_id, connection=connection)
                case "pop":
                    await session.pop_item(event_id=event_id, connection=connection)
                case _:
                    await session.clear_session(event_id=event_id, connection=connection)
            await connection.execute(
                text("INSERT INTO orders VALUES (:event_id)"), {"event_id": event_id}
            )

    point, outcome = 0, None
    while outcome is None or outcome.reached:
        point += 1
        session, event_id = await prepared(store, point), new_event_id()

        outcome = await cancel_at(point, partial(order, session, event_id), late=late)
        assert outcome.cancelled == outcome.reached
        recorded = await is_recorded(session, event_id)
        async with engine.connect() as connection:
            count = text("SELECT count(*) FROM orders WHERE event_id = :event_id")
            assert await connection.scalar(count, {"event_id": event_id}) == recorded
        await check(store, session, WRITES[name], event_id)
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
    session = await prepared(store, 1)

    def read() -> Awaitable[Any]:
        return READS[name](store, session)

    expected = await read()
    outcomes = [outcome async for outcome in cancel_everywhere(read, late=late)]
    assert len(outcomes) > 1
    assert all(outcome.cancelled for outcome in outcomes[:-1])
    assert outcomes[-1].result == expected
    assert await state(session) == BEFORE


async def test_a_cancelled_reader_harms_no_other(store: MetadataStore) -> None:
    session = await prepared(store, 1)
    tasks = [asyncio.create_task(session.get_metadata()) for _ in range(30)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result == BEFORE[1] for result in results[1::2])


async def test_a_feed_is_cancelled_at_any_point(store: MetadataStore) -> None:
    await prepared(store, 1)

    async def read() -> list[int]:
        return [event.position async for event in store.events()]

    expected = await read()
    outcomes = [outcome async for outcome in cancel_everywhere(read)]
    assert outcomes[-1].result == expected
    assert all(outcome.cancelled for outcome in outcomes[:-1])
