"""The transaction that `apply` works in is not its own: it cannot end it, whatever it tries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta import EventMetaError, MetadataStore, NewEvent, ProjectionError, ProjectionFailed
from projections import AppliedProjection
from projections.types import BigInt
from tests.support.backends import Backend
from tests.support.sample_projections import log_of, rows

Act = Callable[[AsyncConnection], Awaitable[Any]]


def positions(act: Act) -> AppliedProjection:
    """The position of each event. Before a bad one, ``act`` is done."""
    table = Table("seen", MetaData(), Column("position", BigInt, primary_key=True))

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        for event in events:
            if event.data.get("bad"):
                await act(connection)
            await connection.execute(insert(tables[0]), {"position": event.position})

    return AppliedProjection("seen", 1, "session", frozenset({"thing"}), (table,), apply)


def thing(*, bad: bool = False) -> NewEvent:
    return NewEvent("thing", {"bad": bad})


async def seen(store: MetadataStore) -> list[int]:
    return [row[0] for row in await rows(store, "seen")]


async def begin(connection: AsyncConnection) -> None:
    async with connection.begin():
        pass


async def below(connection: AsyncConnection) -> None:
    await connection.run_sync(lambda sync: sync.commit())


async def of_the_transaction(connection: AsyncConnection) -> None:
    transaction = connection.get_transaction()
    assert transaction is not None
    await transaction.commit()


def saying(statement: str) -> Act:
    async def act(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(statement)

    return act


ENDING: dict[str, tuple[Act, str]] = {
    "commit": (lambda connection: connection.commit(), "commit()"),
    "rollback": (lambda connection: connection.rollback(), "rollback()"),
    "close": (lambda connection: connection.close(), "close()"),
    "aclose": (lambda connection: connection.aclose(), "aclose()"),
    "invalidate": (lambda connection: connection.invalidate(), "invalidate()"),
    "begin": (begin, "begin()"),
    "commit below": (below, "a commit() or rollback()"),
    "commit of the transaction": (of_the_transaction, "a commit() or rollback()"),
    "COMMIT": (saying("COMMIT"), "'COMMIT'"),
    "ROLLBACK": (saying(" rollback ;"), "'rollback ;'"),
    "BEGIN": (saying("BEGIN"), "'BEGIN'"),
    "a comment and COMMIT": (saying("/* now */ -- really\n commit"), "commit'"),
}


SOME = ("commit", "close", "commit below", "COMMIT")


@pytest.mark.each_dialect
@pytest.mark.parametrize("how", ENDING)
async def test_to_end_it_parks_the_stream_and_loses_nothing(store: MetadataStore, how: str) -> None:
    act, said = ENDING[how]
    store.register(positions(act))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 2)) for n in range(5)]
    await store.catch_up()
    assert await seen(store) == [int(each.position) for each in log if each is not log[2]]
    (parked,) = await store.parked_streams("seen")
    assert parked.position == log[2].position
    assert said in parked.error
    assert "the store commits" in parked.error


@pytest.mark.each_dialect
@pytest.mark.parametrize("how", SOME)
async def test_to_end_that_of_an_append_undoes_it(store: MetadataStore, how: str) -> None:
    act, said = ENDING[how]
    store.register(positions(act), inline=True)
    await store.create_tables()
    await store.catch_up()
    with pytest.raises(ProjectionFailed) as failed:
        await store.append("s", thing(bad=True))
    assert said in str(failed.value)
    assert isinstance(failed.value, ProjectionError)
    assert await log_of(store) == []
    event = await store.append("s", thing())
    assert event.version == 1
    assert await seen(store) == [event.position]


@pytest.mark.each_dialect
@pytest.mark.parametrize("how", SOME)
async def test_to_end_that_of_the_callers_undoes_the_write(store: MetadataStore, how: str) -> None:
    act, _ = ENDING[how]
    store.register(positions(act), inline=True)
    await store.create_tables()
    await store.catch_up()
    async with store.engine.connect() as connection:
        with pytest.raises(EventMetaError):
            await store.append("s", thing(bad=True), connection=connection)
        with suppress(Exception):  # it may be broken for good
            await connection.commit()
    assert await log_of(store) == []
    assert await seen(store) == []


@pytest.mark.each_dialect
@pytest.mark.parametrize("how", SOME)
async def test_to_go_on_after_the_refusal_ends_nothing(store: MetadataStore, how: str) -> None:
    act, _ = ENDING[how]

    async def persist(connection: AsyncConnection) -> None:
        with suppress(ProjectionError):
            await act(connection)

    store.register(positions(persist))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 2)) for n in range(5)]
    await store.catch_up()
    parked = [int(each.position) for each in await store.parked_streams("seen")]
    assert parked in ([], [int(log[2].position)])
    assert sorted([*await seen(store), *parked]) == [int(each.position) for each in log]


@pytest.mark.parametrize(
    "how", ["driver", pytest.param("procedure", marks=pytest.mark.only_on("mariadb"))]
)
async def test_what_is_found_out_afterwards_loses_nothing(
    server_backend: Backend, store: MetadataStore, how: str
) -> None:
    """Nothing can refuse it before, but the checkpoint is written after it is found out.

    On PostgreSQL a procedure refuses to commit.
    """

    async def by_driver(connection: AsyncConnection) -> None:
        lent: Any = (await connection.get_raw_connection()).driver_connection
        if server_backend.name == "postgresql":
            await lent.execute("COMMIT")
        else:
            await lent.commit()

    store.register(positions(by_driver if how == "driver" else saying("CALL ends()")))
    await store.create_tables()
    if how == "procedure":
        async with store.engine.begin() as connection:
            await connection.exec_driver_sql("CREATE PROCEDURE ends() COMMIT")
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 2)) for n in range(5)]
    await store.catch_up()
    parked = [int(each.position) for each in await store.parked_streams("seen")]
    assert int(log[2].position) in parked
    assert {*await seen(store), *parked} == {int(each.position) for each in log}


COMMITTING = (
    "CREATE TABLE more (n INTEGER)",
    "/* x */ TRUNCATE TABLE seen",
    "LOCK TABLES seen WRITE",
)


@pytest.mark.parametrize("statement", COMMITTING)
async def test_statements_that_commit_by_themselves(
    mariadb_backend: Backend, store: MetadataStore, statement: str
) -> None:
    store.register(positions(saying(statement)))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 1)) for n in range(3)]
    await store.catch_up()
    assert await seen(store) == [int(log[0].position), int(log[2].position)]
    assert len(await store.parked_streams("seen")) == 1


HARMLESS = (
    "SAVEPOINT mine",
    "CREATE TEMPORARY TABLE scratch (n INTEGER)",
    "UPDATE seen SET position = position",
    "SELECT 'COMMIT'",
)


@pytest.mark.each_dialect
@pytest.mark.parametrize("statement", HARMLESS)
async def test_statements_that_end_nothing(store: MetadataStore, statement: str) -> None:
    store.register(positions(saying(statement)))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 1)) for n in range(3)]
    await store.catch_up()
    assert await seen(store) == [int(each.position) for each in log]


# --- A session of the ORM on it ------------------------------------------------------------------


@pytest.mark.parametrize("inline", [False, True])
async def test_a_session_on_it_is_a_savepoint(store: MetadataStore, inline: bool) -> None:
    async def act(connection: AsyncConnection) -> None:
        for n, end in ((1, AsyncSession.commit), (2, AsyncSession.rollback)):
            async with AsyncSession(connection) as session:
                await session.execute(text(f"INSERT INTO own VALUES ({n})"))
                await end(session)
        async with AsyncSession(connection) as session, session.begin():
            await session.execute(text("INSERT INTO own VALUES (3)"))
        async with AsyncSession(connection) as session:
            await session.execute(text("INSERT INTO own VALUES (4)"))

    store.register(positions(act), inline=inline)
    await store.create_tables()
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE own (n INTEGER)"))
    await store.catch_up()
    events = [await store.append("s", thing(bad=n == 1)) for n in range(3)]
    await store.catch_up()
    assert await store.parked_streams("seen") == []
    assert await seen(store) == [int(each.position) for each in events]
    assert await rows(store, "own") == [(1,), (3,)]


async def test_a_savepoint_left_open_is_refused(store: MetadataStore) -> None:
    """Its user has not said whether to keep what was done in it."""
    left: list[Any] = []

    async def act(connection: AsyncConnection) -> None:
        left.append(await connection.begin_nested())

    store.register(positions(act))
    await store.create_tables()
    await store.catch_up()
    log = [await store.append(f"s{n}", thing(bad=n == 1)) for n in range(3)]
    await store.catch_up()
    assert await seen(store) == [int(log[0].position), int(log[2].position)]
    (parked,) = await store.parked_streams("seen")
    assert "left a savepoint open" in parked.error
