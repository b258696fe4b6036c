"""Nobody waits for ever: every call ends within its time, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import (
    DatabaseBusy,
    DatabaseUnavailable,
    InvalidInput,
    MetadataSession,
    MetadataStore,
    OutcomeUnknown,
    new_event_id,
)
from tests.support.backends import Backend
from tests.support.helpers import user, versions
from tests.support.network import Network, network

TIMEOUT = 0.4
"""The time that the calls have."""

BOUND = 1.5
"""Seconds within which they end, but for those in which the machine does other things."""

LOOK = 0.02
"""Seconds between two looks of a `Clock`."""

LATE_ANYHOW = 0.002
"""Seconds that a timer may be late on a machine that is idle."""

MOST_LATE = 0.2
"""Seconds that others have the processor at a time, at most: more is a blocked event loop."""


@pytest.fixture
async def silent(server_backend: Backend, url: str) -> AsyncIterator[Network]:
    """A way to the server, which has the tables."""
    async with MetadataStore.from_url(url) as store:
        await store.create_tables()
    async with network(url) as found:
        yield found


async def opened(way: Network, **options: Any) -> MetadataStore:
    """A store that has read and written by ``way``."""
    store = MetadataStore.from_url(way.url, timeout=TIMEOUT, **options)
    session = store.session("s", timeout=30.0)
    await asyncio.gather(*(session.set_metadata({"k": n}) for n in range(3)))
    await asyncio.gather(*(session.get_metadata() for _ in range(3)))
    await session.add_items([user("a")])
    return store


class Clock:
    """Measures how long a block takes, without the time that others had the processor.

    It looks every few milliseconds whether the event loop comes late to that, though this process
    has computed nothing meanwhile.

    Attributes:
        elapsed: The time that has passed.
        taken: How much of that others had.
        seconds: The rest.
    """

    def __enter__(self) -> Clock:
        self._loop = asyncio.get_running_loop()
        self._start, self.taken = self._loop.time(), 0.0
        self._look_again()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._look()
        self.elapsed = self._loop.time() - self._start
        self.seconds = self.elapsed - self.taken

    def _look_again(self) -> None:
        self._computed = time.process_time()
        self._due = self._loop.time() + LOOK
        self._timer = self._loop.call_at(self._due, self._looked)

    def _looked(self) -> None:
        self._look()
        self._look_again()

    def _look(self) -> None:
        late = self._loop.time() - self._due - (time.process_time() - self._computed)
        self.taken += min(max(late - LATE_ANYHOW, 0), MOST_LATE)


Act = Callable[[MetadataStore], Awaitable[Any]]
WRITES: dict[str, Act] = {
    "set": lambda store: store.session("s").set_metadata({"k": 9}),
    "set, expecting": lambda store: store.session("s").set_metadata({"k": 9}, expected_version=4),
    "add": lambda store: store.session("s").add_items([user("b")]),
    "pop": lambda store: store.session("s").pop_item(),
    "clear": lambda store: store.session("s").clear_session(),
    "as a user": lambda store: store.session("mine", user_id="me").set_metadata({"k": 9}),
    "delete user": lambda store: store.delete_user("me"),
}
READS: dict[str, Act] = {
    "metadata": lambda store: store.session("s").get_metadata(),
    "items": lambda store: store.session("s").get_items(),
    "the past": lambda store: store.session("s").get_metadata(as_of=1),
    "history": lambda store: store.session("s").history(),
    "search": lambda store: store.find_sessions_by_metadata("k", 1),
    "horizon": lambda store: store.horizon(),
    "sessions": lambda store: store.list_sessions(),
}


async def test_a_write_that_is_not_answered_has_an_unknown_outcome(silent: Network) -> None:
    for act in WRITES.values():
        store = await opened(silent)
        silent.is_silent = True
        with Clock() as clock, pytest.raises(OutcomeUnknown, match="event_id") as caught:
            await act(store)
        assert clock.elapsed >= TIMEOUT
        assert clock.seconds < BOUND
        assert silent.address in str(caught.value)
        assert "secret" not in str(caught.value)
        with Clock() as clock:
            await store.close()
        assert clock.seconds < BOUND
        silent.is_silent = False


async def test_a_read_that_is_not_answered_finds_no_database(silent: Network) -> None:
    for act in READS.values():
        store = await opened(silent)
        silent.is_silent = True
        with Clock() as clock, pytest.raises(DatabaseUnavailable, match=silent.address):
            await act(store)
        assert clock.elapsed >= TIMEOUT
        assert clock.seconds < BOUND
        await store.close()
        silent.is_silent = False


async def test_it_goes_on_when_the_server_answers_again(silent: Network) -> None:
    store, event_id = await opened(silent), new_event_id()
    session = store.session("s", timeout=30.0)
    silent.is_silent = True
    with pytest.raises(OutcomeUnknown):
        await store.session("s").set_metadata({"k": 9}, event_id=event_id)
    silent.is_silent = False
    event = await session.set_metadata({"k": 9}, event_id=event_id)
    assert event is not None
    assert event.event_id == event_id
    assert await versions(session) == [1, 2, 3, 4, 5]
    await store.close()


@pytest.mark.parametrize("acts", [WRITES, READS], ids=["writes", "reads"])
async def test_a_time_of_the_callers_is_kept(silent: Network, acts: dict[str, Act]) -> None:
    """A cancelled caller waits for the outcome, but no longer than the call itself would."""
    store = await opened(silent)
    silent.is_silent = True
    for act in list(acts.values())[:3]:
        with Clock() as clock, pytest.raises((TimeoutError, DatabaseUnavailable)):
            async with asyncio.timeout(0.05):
                await act(store)
        assert clock.seconds < BOUND
    await store.close()


async def test_closing_does_not_wait_for_a_server_that_is_silent(silent: Network) -> None:
    store = await opened(silent, hints=True)
    silent.is_silent = True
    calls = [asyncio.ensure_future(act(store)) for act in [*WRITES.values(), *READS.values()] * 3]
    await asyncio.sleep(0)
    with Clock() as clock:
        await store.close()
    assert clock.seconds < 2 * BOUND
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)


async def test_each_caller_has_a_time_of_its_own(silent: Network) -> None:
    """Also those whose writes are committed together, and whose reads share a query."""
    store = await opened(silent)
    silent.is_silent = True
    patient = store.session("s", timeout=4 * TIMEOUT)
    first = asyncio.ensure_future(patient.set_metadata({"k": 9}))
    await asyncio.sleep(0.01)
    calls = [asyncio.ensure_future(patient.set_metadata({"l": 9}))]
    with Clock() as clock:
        results = await asyncio.gather(
            *(store.session("s").set_metadata({"l": n}) for n in range(3)),
            *(store.session("s").get_metadata() for n in range(5)),
            return_exceptions=True,
        )
    assert clock.seconds < BOUND
    assert not first.done()
    assert {type(result) for result in results} == {DatabaseUnavailable}, "none of it was sent"
    assert {
        type(result) for result in await asyncio.gather(first, *calls, return_exceptions=True)
    } <= {OutcomeUnknown, DatabaseUnavailable}
    await store.close()


async def test_an_impatient_caller_does_not_end_the_transaction_of_others(
    persistent_backend: Backend, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own command is part of that."""
    write, writing = store.log.database.dialect.write, asyncio.Event()

    async def slowly(*arguments: Any, **options: Any) -> Any:
        writing.set()
        await asyncio.sleep(3 * TIMEOUT)
        return await write(*arguments, **options)

    first = asyncio.ensure_future(store.session("first").set_metadata({"k": 1}))
    await first
    monkeypatch.setattr(store.log.database.dialect, "write", slowly)
    holding = asyncio.ensure_future(store.session("first").set_metadata({"k": 2}))
    await writing.wait()
    calls = [
        asyncio.ensure_future(store.session("a", timeout=TIMEOUT * n).set_metadata({"k": n}))
        for n in (4, 30)
    ]
    await holding
    results = await asyncio.gather(*calls, return_exceptions=True)
    monkeypatch.undo()
    assert isinstance(results[0], OutcomeUnknown)
    assert "the connection was closed" not in str(results[0])
    assert not isinstance(results[1], BaseException)
    assert await store.session("a").get_metadata() == {"k": 30}


async def test_a_first_connection_has_a_deadline(silent: Network) -> None:
    silent.is_silent = True
    store = MetadataStore.from_url(silent.url, timeout=TIMEOUT)
    patient = asyncio.ensure_future(store.session("s", timeout=4 * TIMEOUT).get_metadata())
    for act in (WRITES["set"], READS["metadata"], MetadataStore.create_tables):
        store.log.database.limits = store.log.database.limits._replace(timeout=TIMEOUT / 20)
        with Clock() as clock, pytest.raises(DatabaseUnavailable, match=silent.address):
            await act(store)
        assert clock.seconds < BOUND
    assert not patient.done(), "the limits of one are not those of another"
    silent.is_silent = False
    with pytest.raises(DatabaseUnavailable):
        await patient
    assert await store.session("s").get_metadata() == {}
    await store.close()


async def test_a_transaction_of_the_callers_is_ended(silent: Network) -> None:
    store = await opened(silent)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(store.engine.begin())
        await store.session("s", timeout=30.0).set_metadata({"k": 8}, connection=connection)
        silent.is_silent = True
        with Clock() as clock, pytest.raises(DatabaseUnavailable):
            async with stack.pop_all():  # the rollback has no answer either
                await store.session("s").set_metadata({"l": 8}, connection=connection)
    assert clock.seconds < BOUND
    silent.is_silent = False
    assert await store.session("s", timeout=30.0).get_metadata() == {"k": 2}
    await store.close()


async def test_a_server_that_refuses_is_reported_soon(silent: Network) -> None:
    """With the address, and without the password; many calls together wait no longer."""
    store = MetadataStore.from_url(silent.url, retry_for=0.3)
    await store.session("s").set_metadata({"k": 0})
    await silent.stop()
    calls = [act(store) for act in [*WRITES.values(), *READS.values()] * 4]
    with Clock() as clock:
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert clock.seconds < BOUND
    assert {type(result) for result in results} <= {DatabaseUnavailable, OutcomeUnknown}
    with pytest.raises(DatabaseUnavailable, match=f"no connection to {silent.address}") as caught:
        await store.session("s").set_metadata({"k": 1})
    assert "secret" not in str(caught.value)
    await store.close()


# --- Limits of others ---------------------------------------------------------------------------


async def test_a_pool_without_connections_is_busy(persistent_url: str) -> None:
    async with MetadataStore.from_url(persistent_url) as store:
        await store.create_tables()
    for pool_timeout, timeout in ((0.1, 30.0), (30.0, 0.3)):
        settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": pool_timeout}
        options: dict[str, Any] = {"timeout": timeout, "retry_for": 0.1}
        store = MetadataStore.from_url(persistent_url, engine_kwargs=settings, **options)
        await store.session("s").set_metadata({"k": 0})
        async with store.engine.connect():
            for act in (WRITES["set"], READS["metadata"], READS["horizon"]):
                with Clock() as clock, pytest.raises(DatabaseBusy, match="no connection"):
                    await act(store)
                assert clock.seconds < BOUND
        await store.session("s").set_metadata({"k": 1})
        await store.close()


async def test_a_limit_of_the_drivers_is_no_lost_connection(
    server_backend: Backend, url: str
) -> None:
    """A read is over its limit; of a write it is not known, unless another attempt tells."""
    limit = "command_timeout" if server_backend.name == "postgresql" else "read_timeout"
    arguments = {"connect_args": {limit: 0.3}}
    async with MetadataStore.from_url(url) as store:
        await store.create_tables()
        await store.session("s").set_metadata({"k": 0})
        limited = MetadataStore.from_url(url, engine_kwargs=arguments, retry_for=0)
        await limited.session("s").set_metadata({"k": 1})
        lock = {
            "postgresql": "LOCK TABLE agent_streams, agent_sessions_metadata",
            "mariadb": "LOCK TABLES agent_streams WRITE, agent_sessions_metadata WRITE, "
            "agent_sessions WRITE",
        }[server_backend.name]
        async with store.engine.connect() as connection:
            await connection.exec_driver_sql(lock)
            with pytest.raises(DatabaseBusy, match="limit of time of the driver"):
                await limited.session("s").get_metadata()
            with pytest.raises(OutcomeUnknown):
                await limited.session("s").set_metadata({"k": 2})
            if server_backend.name == "mariadb":
                await connection.exec_driver_sql("UNLOCK TABLES")
        await limited.close()


async def test_a_file_that_is_locked_is_busy_in_time(
    sqlite_file_backend: Backend, store: MetadataStore
) -> None:
    """SQLite waits for the lock no longer than the caller has."""
    session, impatient = store.session("s"), store.session("s", timeout=0.5)
    event_id = new_event_id()
    await session.set_metadata({"k": 0})
    other = sqlite3.connect(str(store.engine.url.database), isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with Clock() as clock, pytest.raises((DatabaseBusy, OutcomeUnknown)) as caught:
            await impatient.set_metadata({"k": 1}, event_id=event_id)
    finally:
        other.close()
    assert clock.seconds < BOUND
    if isinstance(caught.value, DatabaseBusy):
        assert await session.get_metadata() == {"k": 0}
    else:
        assert clock.taken > 0.1, "only where the thread that waits cannot tell in time"
    await session.set_metadata({"k": 1}, event_id=event_id)
    assert await versions(session) == [1, 2]
    async with store.engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA busy_timeout")) == 5_000


async def test_a_statement_that_runs_too_long_is_interrupted(
    sqlite_file_backend: Backend, store: MetadataStore
) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    database = store.log.database
    statement = database.dialect.compile(text(endless))
    with Clock() as clock, pytest.raises(DatabaseUnavailable, match="larger timeout"):
        await database.fetch(statement(), database.limits._replace(timeout=TIMEOUT))
    assert clock.seconds < BOUND
    await store.session("s").set_metadata({"k": 1})


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Any) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/no/such.db")
    with Clock() as clock, pytest.raises(DatabaseUnavailable, match="no/such"):
        await MetadataSession("s", engine=engine, create_tables=True).set_metadata({"k": 1})
    assert clock.seconds < BOUND
    await engine.dispose()
    await asyncio.sleep(0.05)  # for the driver's thread, which has an answer to give


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "1"}, {"retry_for": -1}])
async def test_what_is_no_number_of_seconds_is_refused(url: str, options: Any) -> None:
    engine = create_async_engine(url)
    with pytest.raises(InvalidInput, match="number of seconds"):
        MetadataStore(engine, **options)
    with pytest.raises(InvalidInput, match="number of seconds"):
        MetadataSession("s", engine=engine, **options)
    with pytest.raises(InvalidInput, match="number of seconds"):
        MetadataStore.from_url(url, **options)
