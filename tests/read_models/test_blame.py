"""Whose failure it was: the database's, which passes, or the projection's, which parks a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    MetaData,
    String,
    Table,
    insert,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmeta import (
    DatabaseRefused,
    DatabaseUnavailable,
    EventMetaError,
    MetadataStore,
    NewEvent,
    ProjectionFailed,
    StoreClosed,
)
from eventmeta.database import retry as retrying
from projections import AppliedProjection
from projections.types import BigInt, LongText
from tests.support.backends import SERVERS, SQLITE, Backend
from tests.support.failing import PARAMETERS, failing
from tests.support.helpers import heed_foreign_keys
from tests.support.sample_projections import log_of, rows, tag, tags, tags_of, trail, trail_of


@pytest.fixture
def engine(engine: AsyncEngine) -> AsyncEngine:
    """An engine of an app that has SQLite heed foreign keys."""
    heed_foreign_keys(engine)
    return engine


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.2)


Act = Callable[[AsyncConnection, Table], Awaitable[Any]]


def copies(act: Act | None = None, name: str = "copies") -> AppliedProjection:
    """The text of each event, by position. Of a bad one, ``act`` is done besides."""
    table = Table(
        name,
        MetaData(),
        Column("position", BigInt, primary_key=True, autoincrement=False),
        Column("note", LongText, nullable=False),
    )

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        for each in events:
            row = {"position": each.position, "note": str(each.data["note"])}
            await connection.execute(insert(tables[0]), row)
            if each.data.get("bad") and act is not None:
                await act(connection, tables[0])

    return AppliedProjection(name, 1, "session", frozenset({"thing"}), (table,), apply)


def thing(note: str = "", *, bad: bool = False) -> NewEvent:
    return NewEvent("thing", {"note": note, "bad": bad})


async def copied(store: MetadataStore) -> list[int]:
    return [row[0] for row in await rows(store, "copies")]


# --- The database's ------------------------------------------------------------------------------

LONG = "x" * 60_000


@pytest.mark.parametrize("state", PARAMETERS.values())
async def test_what_the_database_cannot_do_now_parks_nothing(
    store: MetadataStore, backend: Backend, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and when it is over, the projector goes on by itself."""
    store.register(copies())
    store.register(tags())
    await store.create_tables()
    await store.catch_up()
    for n in range(4):
        await store.append(f"s{n}", thing(LONG))
        await store.append(f"s{n}", tag("x", LONG))
    async with (
        failing(store.engine, backend, state, "copies"),
        failing(store.engine, backend, state, "tags"),
    ):
        if state != "no connection left":
            for name in ("copies", "tags"):
                with pytest.raises(DatabaseUnavailable):
                    await store.catch_up(name)
        with caplog.at_level(logging.WARNING, "eventmeta"):
            async with store.projector(max_poll=0.05):
                await asyncio.sleep(0.4)
    waits = [each for each in caplog.messages if "waits: " in each]
    assert len(waits) <= 4, "once for each reason"
    async with store.projector(max_poll=0.05):
        last = (await log_of(store))[-1].position
        for name in ("copies", "tags"):
            await store.wait_for(last, name, timeout=10)
    status = await store.status()
    assert {each.parked_streams for each in status.projections.values()} == {0}
    log = await log_of(store)
    assert await copied(store) == [int(each.position) for each in log if each.type == "thing"]
    assert await rows(store, "tags") == tags_of(log)


@pytest.mark.parametrize(
    "state", [each for state, each in PARAMETERS.items() if state != "no connection left"]
)
async def test_an_append_is_undone_by_what_the_database_cannot_do(
    store: MetadataStore, backend: Backend, state: str
) -> None:
    store.register(copies(), inline=True)
    await store.create_tables()
    await store.catch_up()
    async with failing(store.engine, backend, state, "copies"):
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                await store.append("s", thing(LONG))
    assert await log_of(store) == []
    event = await store.append("s", thing(LONG))
    assert await copied(store) == [event.position]


async def test_a_full_disk_ends_the_transaction_of_the_callers(
    store: MetadataStore, backend: Backend
) -> None:
    """SQLite undoes all of it; to go on in it would commit only what comes later."""
    store.register(copies(_plainly), inline=True)
    await store.create_tables()
    await store.catch_up()
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE own (n INTEGER)"))
        await connection.execute(text("CREATE TABLE others (n INTEGER PRIMARY KEY, note TEXT)"))
    insert_own = "INSERT INTO own VALUES (:n)"
    async with (
        failing(store.engine, backend, "full disk", "others"),
        store.engine.begin() as connection,
    ):
        await connection.execute(text(insert_own), {"n": 1})
        with pytest.raises(DatabaseUnavailable):
            await store.append("s", thing(bad=True), connection=connection)
        if backend.is_server:
            await connection.execute(text(insert_own), {"n": 2})
        else:
            with pytest.raises(InvalidRequestError, match="closed transaction"):
                await connection.execute(text(insert_own), {"n": 2})
    assert await log_of(store) == []
    assert await rows(store, "own") == ([(1,), (2,)] if backend.is_server else [])
    assert await copied(store) == []


@pytest.mark.parametrize(
    "how",
    [
        "as it is",
        "wrapped",
        # On MariaDB only the statement is undone, and that was handled.
        pytest.param("swallowed", marks=pytest.mark.only_on(*SQLITE, "postgresql")),
        "in a savepoint",
        "by the orm",
    ],
)
async def test_however_it_comes_out_of_apply(
    store: MetadataStore, backend: Backend, how: str
) -> None:
    """A database may have ended the transaction, and savepoints with it."""
    wrapping = {
        "as it is": _plainly,
        "wrapped": _wrapped,
        "swallowed": _swallowed,
        "in a savepoint": _nested,
    }
    store.register(copies(wrapping.get(how, _by_orm)))
    await store.create_tables()
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE others (n INTEGER PRIMARY KEY, note TEXT)"))
    await store.catch_up()
    event = await store.append("s", thing(bad=True))
    async with failing(store.engine, backend, "full disk", "others"):
        with pytest.raises(DatabaseUnavailable):
            await store.catch_up()
    await store.catch_up()
    assert await copied(store) == [event.position]
    assert await store.parked_streams("copies") == []


async def _plainly(connection: AsyncConnection, _: Table) -> None:
    statement = text("INSERT INTO others VALUES (1, :note)")
    await connection.execute(statement, {"note": LONG})


async def _wrapped(connection: AsyncConnection, table: Table) -> None:
    try:
        await _plainly(connection, table)
    except Exception as error:
        raise ValueError("could not write") from error


async def _swallowed(connection: AsyncConnection, table: Table) -> None:
    with suppress(DBAPIError):
        await _plainly(connection, table)


async def _nested(connection: AsyncConnection, table: Table) -> None:
    async with connection.begin_nested():
        await _plainly(connection, table)


class Base(DeclarativeBase):
    pass


class Other(Base):
    __tablename__ = "others"
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(String(100_000))


async def _by_orm(connection: AsyncConnection, _: Table) -> None:
    async with AsyncSession(connection) as session:
        session.add(Other(n=1, note=LONG))
        await session.commit()


@pytest.mark.parametrize(
    ("error", "passes"), [(PoolTimeout("none is free"), True), (StoreClosed(), False)]
)
async def test_what_apply_meets_of_the_store_itself(
    store: MetadataStore, error: Exception, passes: bool
) -> None:
    """It may read from the store, which may be busy, or closed meanwhile."""
    failures = [error]

    async def fail(*_: Any) -> None:
        if failures:
            raise failures.pop()

    store.register(copies(fail))
    await store.create_tables()
    await store.catch_up()
    await store.append("s", thing(bad=True))
    with nullcontext() if passes else pytest.raises(EventMetaError):
        await store.catch_up()
    assert await store.parked_streams("copies") == []
    await store.catch_up()
    assert len(await copied(store)) == 1


async def test_a_table_of_a_projection_that_may_not_be_written_to(
    server_backend: Backend, store: MetadataStore
) -> None:
    """It concerns all events, so they wait until the right is given."""
    store.register(tags())
    await store.create_tables()
    await store.catch_up()
    await store.append("s", tag("x"))
    refusal = {
        "postgresql": "42501",
        "mariadb": "1142",
    }[server_backend.name]
    async with failing(store.engine, server_backend, "full disk", "tags", code=refusal):
        with pytest.raises(DatabaseRefused):
            await store.catch_up()
        assert await store.parked_streams("tags") == []
    await store.catch_up()
    assert await rows(store, "tags") == tags_of(await log_of(store))


# --- The projection's ----------------------------------------------------------------------------


def statement(sql: str) -> Act:
    async def act(connection: AsyncConnection, _: Table) -> None:
        await connection.execute(text(sql))

    return act


async def _of_python(connection: AsyncConnection, _: Table) -> None:
    raise KeyError("missing")


async def _network(connection: AsyncConnection, _: Table) -> None:
    raise ConnectionRefusedError(111, "of a service that is none of ours")


async def _type_error(connection: AsyncConnection, table: Table) -> None:
    await connection.execute(insert(table), {"position": object(), "note": "x"})


async def _orm_duplicate(connection: AsyncConnection, _: Table) -> None:
    async with AsyncSession(connection) as session:
        session.add_all([Other(n=7, note="a")])
        await session.flush()
        await session.execute(text("INSERT INTO others VALUES (7, 'b')"))


async def _unique(connection: AsyncConnection, table: Table) -> None:
    copy = select(table.c.position, literal_column("'again'")).limit(1)
    await connection.execute(insert(table).from_select(["position", "note"], copy))


FAULTS: dict[str, Act] = {
    "foreign key": statement("INSERT INTO orders VALUES (77, 1)"),
    "check": statement("INSERT INTO orders VALUES (NULL, -1)"),
    "not null": statement("INSERT INTO orders VALUES (NULL, NULL)"),
    "unique": _unique,
    "missing table": statement("INSERT INTO copies_not_there VALUES (1)"),
    "missing column": statement("UPDATE copies SET not_there = 1"),
    "type": _type_error,
    "syntax": statement("INSERT INTO"),
    "orm": _orm_duplicate,
    "python": _of_python,
    "network": _network,
}
ON_SERVERS = {
    "too long": statement("INSERT INTO orders_notes VALUES ('123456')"),
    "division": statement("UPDATE copies SET position = 1 / (position - position)"),
}
"""SQLite bears these."""

ORDERS = (
    "CREATE TABLE customers (id INTEGER PRIMARY KEY)",
    "CREATE TABLE orders (customer INTEGER, price INTEGER NOT NULL CHECK (price > 0), "
    "FOREIGN KEY (customer) REFERENCES customers (id))",
    "CREATE TABLE orders_notes (note VARCHAR(5))",
    "CREATE TABLE others (n INTEGER PRIMARY KEY, note VARCHAR(20))",
)


@pytest.mark.each_dialect
@pytest.mark.parametrize(
    "fault",
    [
        *FAULTS,
        *(pytest.param(fault, marks=pytest.mark.only_on(*SERVERS)) for fault in ON_SERVERS),
    ],
)
async def test_a_fault_of_the_projection_parks_its_stream(
    store: MetadataStore, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.register(copies({**FAULTS, **ON_SERVERS}[fault]))
    await store.create_tables()
    async with store.engine.begin() as connection:
        for each in ORDERS:
            await connection.execute(text(each))
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 2)) for n in range(6)]
    with caplog.at_level(logging.WARNING, "eventmeta"):
        async with asyncio.timeout(10), store.projector():
            await store.wait_for(log[-1].position, "copies")
    assert await copied(store) == [int(each.position) for each in log if each is not log[2]]
    (parked,) = await store.parked_streams("copies")
    assert (parked.stream_id, parked.position) == ("s2", log[2].position)
    (told,) = caplog.messages
    where = f"parked the session 's2' at position {parked.position}"
    assert told == f"projection 'copies' {where}: {parked.error.splitlines()[0]}"
    assert len(await store.retry("copies")) == 1
    assert len(caplog.messages) == 2


@pytest.mark.each_dialect
@pytest.mark.parametrize("fault", ["foreign key", "missing table", "unique", "python"])
async def test_it_undoes_the_append_that_it_is_part_of(
    store: MetadataStore, backend: Backend, fault: str
) -> None:
    """At once, and those of others are not delayed."""
    store.register(copies(FAULTS[fault]), inline=True)
    await store.create_tables()
    async with store.engine.begin() as connection:
        for each in ORDERS:
            await connection.execute(text(each))
    await store.catch_up()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(
            *(store.append(f"s{n}", thing(bad=n == 2)) for n in range(5)), return_exceptions=True
        )
    failed = outcomes.pop(2)
    assert isinstance(failed, ProjectionFailed), failed
    log = await log_of(store)
    assert {each.stream_id for each in log} == {"s0", "s1", "s3", "s4"}
    assert await copied(store) == [int(each.position) for each in log]


@pytest.mark.only_on(*SQLITE, "postgresql")  # MariaDB defers no constraint
async def test_a_constraint_that_is_looked_at_in_the_end(store: MetadataStore) -> None:
    """When the transaction is committed, which is after `apply`."""
    store.register(copies(statement("INSERT INTO orders VALUES (77)")))
    await store.create_tables()
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE customers (id INTEGER PRIMARY KEY)"))
        await connection.execute(
            text(
                "CREATE TABLE orders (customer INTEGER REFERENCES customers (id) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 1)) for n in range(3)]
    async with asyncio.timeout(5):
        await store.catch_up()
    assert await copied(store) == [int(log[0].position), int(log[2].position)]
    assert [each.stream_id for each in await store.parked_streams("copies")] == ["s1"]


async def test_a_table_of_its_own_that_is_missing_is_waited_for(store: MetadataStore) -> None:
    """Though another one, whose name begins like its own, parks a stream."""
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    await store.append("a", NewEvent("noted", {"n": 1}))
    async with store.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE trail RENAME TO away"))
    with pytest.raises(EventMetaError, match="create_tables"):
        await store.catch_up()
    async with store.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO trail"))
    await store.catch_up()
    assert await rows(store, "trail") == trail_of(await log_of(store))
