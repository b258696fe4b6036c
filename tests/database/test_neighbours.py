"""What becomes of one caller is not felt by another: cancellation, failures, ends of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta import DatabaseFailure, MetadataStore
from eventmeta.core.deadline import Deadline, Expired
from eventmeta.core.settle import run_to_completion
from eventmeta.core.signals import Notifier
from eventmeta.database import opening
from eventmeta.database.create_tables import create_tables
from tests.support.backends import Backend

LONG = 30.0


class Reads:
    """The reads of a store, each of which waits until it is let go or fails."""

    def __init__(self, store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self._begun: list[asyncio.Future[None]] = []
        self._read = store.log.database.dialect.read
        monkeypatch.setattr(store.log.database.dialect, "read", self._held)

    async def _held(self, queries: Sequence[Any]) -> Any:
        self._begun.append(asyncio.get_running_loop().create_future())
        await self._begun[-1]
        return await self._read(queries)

    def call(self) -> asyncio.Task[Any]:
        return asyncio.create_task(self._store.session("s").get_metadata(["k"]))

    async def end(self, number: int, failure: Exception | None = None) -> None:
        """Let the read of this number go, which begins soon."""
        async with asyncio.timeout(10):
            while len(self._begun) <= number:
                await asyncio.sleep(0)
        if failure is None:
            self._begun[number].set_result(None)
        else:
            self._begun[number].set_exception(failure)


@pytest.fixture
async def filled(store: MetadataStore) -> MetadataStore:
    await store.session("s").set_metadata({"k": 1})
    await store.session("s").get_metadata()
    return store


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    """What they return or raise, without a wait for those that hang."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*tasks, return_exceptions=True)


# --- Readers --------------------------------------------------------------------------------------


FAILURE = DatabaseFailure("as the database says it")


@pytest.mark.two_dialects
async def test_cancelled_readers_whose_queries_fail_leave_no_other_waiting(
    filled: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who read are gone when the next one is waiting."""
    reads = Reads(filled, monkeypatch)
    first = reads.call()
    await turns()
    second = reads.call()
    await turns()
    await reads.end(0)
    await first
    third = reads.call()
    await turns()
    last = reads.call()
    await turns()
    for number, task in enumerate((second, third), 1):
        task.cancel()
        await reads.end(number, FAILURE)
    await reads.end(3)
    results = await ended([second, third, last])
    assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert results[2] == {"k": 1}


@pytest.mark.two_dialects
@pytest.mark.parametrize("failure", [FAILURE, None], ids=["fails", "succeeds"])
async def test_a_cancelled_reader_of_a_batch_that_failed_ends_no_other(
    filled: MetadataStore, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """It is cancelled while those of the batch are read one by one."""
    reads = Reads(filled, monkeypatch)
    first = reads.call()
    await turns()
    second = reads.call()
    await turns()
    batch = [reads.call() for _ in range(3)]
    await turns()
    await reads.end(0)
    await reads.end(1)
    await reads.end(2, FAILURE)
    await turns()
    batch[0].cancel()
    await reads.end(3, failure)
    await reads.end(4)
    await reads.end(5, FAILURE)
    results = await ended([first, second, *batch])
    assert results[:2] == [{"k": 1}] * 2
    assert isinstance(results[2], asyncio.CancelledError)
    assert results[3:] == [{"k": 1}, FAILURE]


# --- The first connection and the tables ----------------------------------------------------------


@pytest.mark.parametrize("create", [False, True])
async def test_the_first_connection_is_made_for_those_who_are_left(
    persistent_url: str, create: bool
) -> None:
    async with MetadataStore.from_url(persistent_url) as store:
        await store.create_tables()
    store = MetadataStore.from_url(persistent_url)
    tasks = [
        asyncio.create_task(store.session("s", create_tables=create).get_metadata())
        for _ in range(6)
    ]
    await asyncio.sleep(0.001)
    for task in tasks[::2]:
        task.cancel()
    results = await ended(tasks)
    assert results[1::2] == [{}] * 3
    await store.close()


async def test_a_failure_to_create_tables_is_that_of_one_call(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = MetadataStore(engine), 0

    async def fails_once(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        if calls == 1:
            raise DatabaseFailure("as the database says it")
        await create_tables(*arguments, **options)

    monkeypatch.setattr(opening, "create_tables", fails_once)
    tasks = [
        asyncio.create_task(store.session("s", create_tables=True).get_metadata()) for _ in range(3)
    ]
    results = await ended(tasks)
    assert isinstance(results[0], DatabaseFailure)
    assert results[1:] == [{}, {}]


# --- Writers --------------------------------------------------------------------------------------


async def test_writers_that_are_cancelled_in_the_queue_harm_no_other(
    filled: MetadataStore,
) -> None:
    sessions = [filled.session(f"s{n}") for n in range(12)]
    tasks = [asyncio.create_task(each.set_metadata({"k": 1})) for each in sessions]
    await turns(3)
    for task in tasks[1::2]:
        task.cancel()
        await turns(1)
    results = await ended(tasks)
    assert not [result for result in results[::2] if isinstance(result, BaseException)]


async def test_a_hint_that_fails_or_is_cancelled_harms_no_writer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MetadataStore.from_url(url, hints=True) as store:
        await store.create_tables()
        for failure in (OSError("no connection"), asyncio.CancelledError()):
            raised: list[BaseException] = []

            async def hint(
                *_: object,
                failure: BaseException = failure,
                raised: list[BaseException] = raised,
            ) -> None:
                raised.append(failure)
                raise failure

            monkeypatch.setattr(store.log.database.dialect, "hint", hint)
            for n in range(2):
                await store.session("s").set_metadata({"k": n})
                await turns()
            assert raised
            assert await store.session("s").get_metadata() == {"k": 1}


async def test_a_signal_reaches_all_but_the_cancelled() -> None:
    signals = Notifier()
    tasks = [asyncio.create_task(signals.wait(0, LONG)) for _ in range(4)]
    await turns()
    tasks[0].cancel()
    tasks[2].cancel()
    signals.give()
    results = await ended(tasks)
    assert results[1::2] == [None, None]
    assert not signals.has_waiters


# --- anyio ----------------------------------------------------------------------------------------


class Turns:
    """Counts the turns of the event loop, and the processor's time that they take."""

    async def __aenter__(self) -> Turns:
        self.count = 0
        self._cpu = time.process_time()
        self._loop = cast(Any, asyncio.get_running_loop())
        run_once = self._loop._run_once

        def counted() -> None:
            self.count += 1
            run_once()

        self._loop._run_once = counted
        return self

    async def __aexit__(self, *_: object) -> None:
        del self._loop._run_once
        self.cpu = time.process_time() - self._cpu


async def test_a_cancelled_scope_of_anyios_does_not_keep_the_loop_busy() -> None:
    """anyio cancels a task again in each turn until that has left the scope."""
    ending = asyncio.ensure_future(asyncio.sleep(0.3, "done"))
    async with Turns() as loop:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await run_to_completion(ending)
    assert ending.done()
    assert scope.cancelled_caught
    assert loop.count < 100
    assert loop.cpu < 0.2


ACTS: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "set": lambda store: store.session("s").set_metadata({"k": 2}),
    "get": lambda store: store.session("s").get_metadata(),
    "history": lambda store: store.session("s").history(),
    "horizon": lambda store: store.horizon(),
    "tables": lambda store: store.create_tables(),
}


@pytest.mark.parametrize("name", ACTS)
async def test_a_call_in_a_cancelled_scope_of_anyios_ends(
    filled: MetadataStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With its outcome settled, and without work for the loop meanwhile."""
    dialect = filled.log.database.dialect
    for method in ("read", "write"):
        done = getattr(dialect, method)

        async def slowly(*arguments: Any, done: Any = done, **options: Any) -> Any:
            await asyncio.sleep(0.2)
            return await done(*arguments, **options)

        monkeypatch.setattr(dialect, method, slowly)
    async with asyncio.timeout(10), Turns() as loop:
        with anyio.move_on_after(0.05) as scope:
            await ACTS[name](filled)
    assert scope.cancelled_caught or name == "tables"
    assert loop.count < 500
    monkeypatch.undo()
    await filled.session("s").set_metadata({"k": 3})
    assert await filled.session("s").get_metadata() == {"k": 3}


# --- Deadlines ------------------------------------------------------------------------------------


async def test_a_deadline_ends_what_loses_a_cancellation() -> None:
    async def loses_one() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(LONG)

    start = time.monotonic()
    with pytest.raises(Expired), Deadline(0.05):
        await loses_one()
    assert time.monotonic() - start < 3
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_deadline_gives_up_what_cannot_be_cancelled() -> None:
    start = time.monotonic()
    with pytest.raises(Expired), Deadline(0.05):
        await run_to_completion(asyncio.sleep(5))
    assert time.monotonic() - start < 3


async def test_a_cancellation_of_the_callers_is_not_the_deadlines() -> None:
    async def work() -> None:
        with Deadline(0.1):
            await run_to_completion(asyncio.sleep(0.3))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# --- Plans that are out of date -------------------------------------------------------------------


@pytest.fixture
async def change_types(
    postgresql_backend: Backend, store: MetadataStore
) -> Callable[[], Awaitable[None]]:
    """Changes the types of columns, with which prepared statements have been planned."""
    size = 255

    async def change() -> None:
        nonlocal size
        size += 1
        async with store.engine.begin() as connection:
            for table, column in (
                ("agent_streams", "user_id"),
                ("agent_events", "actor"),
                ("agent_sessions_metadata", "key"),
            ):
                await _widen(connection, table, column, size)

    return change


async def _widen(connection: AsyncConnection, table: str, column: str, size: int) -> None:
    await connection.execute(text("DROP VIEW IF EXISTS agent_metadata_changes"))
    await connection.execute(text(f'ALTER TABLE {table} ALTER "{column}" TYPE varchar({size})'))


async def test_plans_that_are_out_of_date_are_made_anew(
    store: MetadataStore, change_types: Callable[[], Awaitable[None]]
) -> None:
    session = store.session("s")
    await session.set_metadata({"k": 0})
    for n in range(1, 4):
        # On all connections of the pool, several times, so that the statements are planned.
        for _ in range(3):
            await asyncio.gather(*(session.get_metadata() for _ in range(4)))
            await session.set_metadata({"n": n}, expected_version=await _version(session))
        await change_types()
        await session.set_metadata({"k": n}, expected_version=await _version(session))
        await session.delete_metadata(["n"])
        await session.pop_item()
        assert await session.get_metadata() == {"k": n}


async def _version(session: Any) -> int:
    return len(await session.history())
