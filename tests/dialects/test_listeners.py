"""What the app does in the events of its engine and pool happens for the store as well."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import DatabaseFailure, MetadataStore, NewEvent, TablesMissing
from tests.support.backends import Backend
from tests.support.helpers import contents, user
from tests.support.using import begin_by_events, closings, use

EVENTS = ("begin", "commit", "before_cursor_execute", "after_cursor_execute")


def listen(engine: AsyncEngine, name: str) -> list[Any]:
    """A list that grows with each call of a listener."""
    calls: list[Any] = []
    event.listen(engine.sync_engine, name, lambda *given: calls.append(given))
    return calls


@pytest.mark.parametrize("name", EVENTS)
async def test_events_are_heard_of_reads_and_writes(store: MetadataStore, name: str) -> None:
    """Also by a listener that comes after the store was used."""
    session = store.session("s")
    await session.set_metadata({"k": 1})
    calls = listen(store.engine, name)
    await session.set_metadata({"k": 2})
    written = len(calls)
    assert written
    assert await session.get_metadata() == {"k": 2}
    assert len(calls) > written
    async with store.engine.begin() as connection:
        before = len(calls)
        await session.add_items([user("x")], connection=connection)
        assert len(calls) > before or name in ("begin", "commit")


@pytest.mark.parametrize("name", ["before_cursor_execute", "do_execute", "handle_error"])
async def test_all_works_while_someone_listens(engine: AsyncEngine, name: str) -> None:
    calls, store = listen(engine, name), MetadataStore(engine, structured_metadata=True)
    await use(store)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE agent_sessions_metadata"))
    before = len(calls)
    with pytest.raises(TablesMissing):
        await store.session("one").get_metadata()
    assert len(calls) > before


async def test_statements_are_echoed(
    store: MetadataStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.engine.echo = True
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        await store.session("s").set_metadata({"k": 1})
    assert "INSERT INTO" in caplog.text
    assert "agent_events" in caplog.text
    store.engine.echo = False


async def test_a_statement_that_a_listener_refuses_changes_nothing(store: MetadataStore) -> None:
    session = store.session("s")

    def refuse(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "agent_events" in statement and "INSERT" in statement:
            raise PermissionError("not today")

    event.listen(store.engine.sync_engine, "before_cursor_execute", refuse)
    with pytest.raises(DatabaseFailure, match="not today"):
        await session.set_metadata({"k": 1})
    event.remove(store.engine.sync_engine, "before_cursor_execute", refuse)
    assert await session.get_metadata() == {}
    await session.set_metadata({"k": 2})


async def test_a_listener_of_one_option_engine_is_not_that_of_another(
    store: MetadataStore,
) -> None:
    engines = [store.engine.execution_options() for _ in range(2)]
    calls = [listen(engine, "begin") for engine in engines]
    await MetadataStore(engines[0]).session("s").set_metadata({"k": 1})
    heard = len(calls[0])
    assert (heard > 0, calls[1]) == (True, [])
    await MetadataStore(engines[1]).session("s").set_metadata({"k": 2})
    assert (len(calls[0]), len(calls[1]) > 0) == (heard, True)


# --- Who is it? ----------------------------------------------------------------------------------

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def tell_who(engine: AsyncEngine, name: str) -> list[str]:
    """As row-level security has it: at each transaction or checkout, the database is told."""
    told: list[str] = []
    event.listen(engine.sync_engine, name, lambda *_: told.append(WHO.get()))
    return told


@pytest.mark.parametrize("name", ["begin", "checkout", "checkin", "reset"])
async def test_each_transaction_is_for_one_caller(url: str, name: str) -> None:
    """On an engine to which nobody else listens, as those of other tests have listeners."""
    store = MetadataStore(create_async_engine(url))
    await store.create_tables()
    told = tell_who(store.engine, name)

    async def call(n: int) -> None:
        WHO.set(f"caller {n}")
        session = store.session(f"s{n}")
        await session.set_metadata({"k": n})
        assert await session.get_metadata() == {"k": n}
        await session.add_items([user(str(n))])
        assert contents(await session.get_items()) == [str(n)]

    await asyncio.gather(*(call(n) for n in range(12)))
    assert {f"caller {n}" for n in range(12)} == set(told)
    for n in range(12):
        assert told.count(f"caller {n}") >= 4
    await store.engine.dispose()


POLICY = [
    "CREATE ROLE app_{name} LOGIN",
    "GRANT ALL ON ALL TABLES IN SCHEMA public TO app_{name}",
    "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app_{name}",
    "ALTER TABLE agent_sessions_metadata ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON agent_sessions_metadata "
    "USING (session_id LIKE current_setting('app.who', true) || '-%')",
]


@pytest.mark.usefixtures("postgresql_backend")
@pytest.mark.parametrize("name", ["begin", "checkout"])
async def test_row_level_security(url: str, store: MetadataStore, name: str) -> None:
    role = url.rpartition("/")[2].partition("?")[0]
    async with store.engine.begin() as connection:
        for statement in POLICY:
            await connection.execute(text(statement.format(name=role)))
    engine = create_async_engine(url.replace("postgres@", f"app_{role}@", 1))

    @event.listens_for(engine.sync_engine, name)
    def tell(target: Any, *_: Any) -> None:
        statement = f"SELECT set_config('app.who', '{WHO.get()}', false)"
        if name == "begin":
            target.exec_driver_sql(statement)
        else:
            cursor = target.cursor()
            cursor.execute(statement)
            cursor.close()

    guarded = MetadataStore(engine)

    async def call(who: str) -> None:
        WHO.set(who)
        await guarded.session(f"{who}-1").set_metadata({"k": who})
        for other in ("ann", "bob", "cem"):
            expected = {"k": who} if other == who else {}
            assert await guarded.session(f"{other}-1").get_metadata() == expected

    await asyncio.gather(*map(call, ("ann", "bob", "cem")))
    await asyncio.gather(*map(call, ("cem", "ann", "bob")))
    for who in ("ann", "bob", "cem"):
        assert await store.session(f"{who}-1").get_metadata() == {"k": who}
    await engine.dispose()
    async with store.engine.begin() as connection:
        await connection.execute(text(f"DROP OWNED BY app_{role}"))
        await connection.execute(text(f"DROP ROLE app_{role}"))


async def test_what_a_checkout_has_begun_is_part_of_the_transaction(
    persistent_backend: Backend, engine: AsyncEngine
) -> None:
    """A listener's own row is committed with the store's, which is durable when acknowledged."""
    store = MetadataStore(engine)
    await store.create_tables()
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE audit (n INTEGER)")

    def audit(connection: Any, *_: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("INSERT INTO audit VALUES (1)")
        cursor.close()

    event.listen(engine.sync_engine, "checkout", audit)
    await store.session("s").set_metadata({"k": 1})
    event.remove(engine.sync_engine, "checkout", audit)
    other = create_async_engine(engine.url)
    async with other.connect() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM audit")).scalar()
    assert await MetadataStore(other).session("s").get_metadata() == {"k": 1}
    await other.dispose()


# --- SQLAlchemy's recipe for SQLite --------------------------------------------------------------


def transactions(engine: AsyncEngine) -> list[str]:
    """Return a list that gets each statement by which SQLite begins a transaction."""
    begun: list[str] = []

    def told(statement: str) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    @event.listens_for(engine.sync_engine, "connect")
    def traced(connection: Any, _: Any) -> None:
        connection.run_async(lambda driver: driver.set_trace_callback(told))

    return begun


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
@pytest.mark.usefixtures("sqlite_file_backend")
async def test_begin_by_events(url: str, begin: str) -> None:
    engine = create_async_engine(url)
    begin_by_events(engine, begin)
    begun, heard = transactions(engine), listen(engine, "begin")
    await use(MetadataStore(engine, structured_metadata=True))
    assert begun == [begin] * len(heard)
    await engine.dispose()


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
@pytest.mark.usefixtures("sqlite_file_backend")
async def test_begin_by_events_with_a_projection_inline(url: str, begin: str) -> None:
    engine = create_async_engine(url)
    begin_by_events(engine, begin)
    store = MetadataStore(engine)
    store.register(closings(), inline=True)
    await store.create_tables()
    await asyncio.gather(*(store.session(f"s{n}").set_metadata({"k": n}) for n in range(10)))
    await store.append("s3", NewEvent("closed"))
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT session_id FROM closed_sessions")
        assert found.scalars().all() == ["s3"]
    assert await store.find_sessions_by_metadata("k", 3) == ["s3"]
    await engine.dispose()


@pytest.mark.usefixtures("sqlite_memory_backend")
async def test_begin_by_events_in_memory(url: str) -> None:
    engine = create_async_engine(url)
    begin_by_events(engine)
    begun, heard = transactions(engine), listen(engine, "begin")
    await use(MetadataStore(engine))
    assert begun == ["BEGIN"] * len(heard)
    await engine.dispose()


@pytest.mark.usefixtures("sqlite_file_backend")
async def test_a_deferred_transaction_waits_for_its_turn(url: str) -> None:
    """As BEGIN IMMEDIATE does: one that reads before it writes would fail at once."""
    engine = create_async_engine(url)
    begin_by_events(engine)
    store = MetadataStore(engine)
    await store.create_tables()
    others = [MetadataStore(create_async_engine(url)) for _ in range(2)]

    async def write(writer: MetadataStore, name: str) -> None:
        for n in range(20):
            async with writer.engine.begin() as connection:
                await writer.session(name).set_metadata({"k": n}, connection=connection)

    await asyncio.gather(*(write(each, f"s{n}") for n, each in enumerate((store, *others))))
    for n in range(3):
        assert await store.session(f"s{n}").get_metadata() == {"k": 19}
    for each in (store, *others):
        await each.engine.dispose()
