"""A drop-in: the constructor, the protocol and the tables of upstream's SQLAlchemySession."""

from __future__ import annotations

import asyncio
import inspect as signatures
from collections.abc import Callable
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from agents.memory import Session, SessionSettings
from sqlalchemy import Connection, Inspector, inspect, text
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, TableOptions
from eventmeta.tables.names import TableNames
from tests.support.backends import Backend
from tests.support.helpers import user, users

# --- Calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["__init__", "from_url"])
def test_every_parameter_of_upstream_is_there_with_its_default(name: str) -> None:
    ours = signatures.signature(getattr(MetadataSession, name)).parameters
    theirs = signatures.signature(getattr(SQLAlchemySession, name)).parameters
    assert theirs
    for parameter in theirs.values():
        if parameter.name in TableOptions.__annotations__:
            assert getattr(TableNames, parameter.name) == parameter.default
            continue
        mine = ours[parameter.name]
        assert (mine.kind, mine.default) == (parameter.kind, parameter.default)


@pytest.mark.parametrize("name", ["get_items", "add_items", "pop_item", "clear_session"])
def test_methods_take_what_upstreams_take(name: str) -> None:
    ours = signatures.signature(getattr(MetadataSession, name)).parameters
    theirs = signatures.signature(getattr(Session, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [ours[p].default for p in theirs] == [p.default for p in theirs.values()]


async def test_it_is_a_session(engine: AsyncEngine) -> None:
    session = MetadataSession("s", engine=engine)
    assert isinstance(session, Session)
    assert session.session_id == "s"
    assert session.session_settings == SessionSettings()


def test_the_engine_is_the_one_given_and_read_only() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    session = MetadataSession("s", engine=engine)
    assert session.engine is engine
    with pytest.raises(AttributeError):
        session.engine = engine  # type: ignore[misc]


async def test_from_url(url: str) -> None:
    session = MetadataSession.from_url(
        "s",
        url=url,
        engine_kwargs={"echo": False},
        session_settings={"limit": 1},
        create_tables=True,
    )
    try:
        await session.add_items(users("a", "b"))
        assert await session.get_items() == users("b")
        assert session.engine.url.render_as_string(hide_password=False) == url
    finally:
        await session.engine.dispose()


async def test_sessions_of_one_url_share_an_engine(persistent_url: str) -> None:
    one = MetadataSession.from_url("one", url=persistent_url, create_tables=True)
    two = MetadataSession.from_url("two", url=persistent_url)
    try:
        assert one.engine is two.engine
        await one.add_items(users("a"))
        assert await two.get_items() == []
    finally:
        await one.engine.dispose()


async def test_sessions_may_all_create_the_tables_at_once(engine: AsyncEngine) -> None:
    sessions = [MetadataSession(f"{n}", engine=engine, create_tables=True) for n in range(5)]
    await asyncio.gather(*(session.add_items(users("a")) for session in sessions))
    assert [await session.get_items() for session in sessions] == [users("a")] * 5


async def test_a_write_waits_for_the_apps_own_transaction_on_a_shared_connection() -> None:
    """An in-memory database has one connection; what the app does on it is not rolled back."""
    engine = create_async_engine("sqlite+aiosqlite://")
    session = MetadataSession("s", engine=engine, create_tables=True)
    await session.add_items(users("a"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE app (n INT)"))
        await connection.execute(text("INSERT INTO app VALUES (1)"))
        write = asyncio.create_task(session.add_items(users("b")))
        await asyncio.sleep(0.05)
        assert not write.done()
        await connection.execute(text("INSERT INTO app VALUES (2)"))
    await write
    async with engine.connect() as connection:
        assert list(await connection.scalars(text("SELECT n FROM app"))) == [1, 2]
    assert await session.get_items() == users("a", "b")
    await engine.dispose()


async def test_tables_may_be_called_otherwise(engine: AsyncEngine) -> None:
    names: dict[str, Any] = {"sessions_table": "app_sessions", "messages_table": "app_messages"}
    ours = MetadataSession("s", engine=engine, create_tables=True, **names)
    theirs = SQLAlchemySession("s", engine=engine, **names)
    await ours.add_items(users("a"))
    await theirs.add_items(users("b"))
    assert await ours.get_items() == await theirs.get_items() == users("a", "b")
    async with engine.connect() as connection:
        found = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert {"app_sessions", "app_messages"} <= set(found)
    assert not {"agent_sessions", "agent_messages"} & set(found)


# --- Rows ---------------------------------------------------------------------------------------

ITEMS = [
    user("Grüße, 🐘 \x00"),
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c", "output": "0.1"},
]


@pytest.mark.parametrize("ensure_ascii", [True, False])
async def test_rows_are_the_same_as_upstreams(engine: AsyncEngine, ensure_ascii: bool) -> None:
    ours = MetadataSession("s1", engine=engine, create_tables=True, ensure_ascii=ensure_ascii)
    theirs = SQLAlchemySession("s2", engine=engine, ensure_ascii=ensure_ascii)
    for session in (ours, theirs):
        await session.add_items(ITEMS[:1])
        await session.add_items(ITEMS[1:])
    messages = "SELECT {} FROM agent_messages WHERE session_id = :id ORDER BY id"
    sessions = "SELECT {} FROM agent_sessions WHERE session_id = :id"
    async with engine.connect() as connection:

        async def of(session_id: str, query: str) -> list[Any]:
            return list(await connection.execute(text(query), {"id": session_id}))

        async def same(query: str) -> bool:
            mine, upstreams = [await of(s, query) for s in ("s1", "s2")]
            assert len(mine) == len(upstreams) > 0
            return mine == upstreams

        assert await same(messages.format("message_data"))
        assert (
            len({row[0] for s in ("s1", "s2") for row in await of(s, messages.format("id"))}) == 6
        )
        for table, columns in (
            (messages, ("session_id", "message_data", "created_at")),
            (sessions, ("session_id", "created_at", "updated_at")),
        ):
            for column in columns:
                assert await same(table.format(shape_of(column, engine)))


def shape_of(column: str, engine: AsyncEngine) -> str:
    """What must be equal in the column even where the value is not: its type and its length."""
    match engine.dialect.name:
        case "sqlite":
            return f"typeof({column}), length({column}), {column} LIKE '____-__-__ __:__:__'"
        case "postgresql" if column.endswith("_at"):
            # The server's clock has microseconds, and trailing zeros are not printed.
            return f"pg_typeof({column}), {column} > localtimestamp - interval '1 minute'"
        case "postgresql":
            return f"pg_typeof({column}), length({column})"
        case _:
            return f"length({column})"


# --- Tables -------------------------------------------------------------------------------------

TABLES = ("agent_sessions", "agent_messages")
DETAILS = ("columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints")


def tables_of(connection: Connection) -> dict[str, Any]:
    """All but the column of the owner, which upstream's table does not have."""
    found = inspect(connection)
    return {
        f"{table} {detail}": repr(
            [each for each in listed(found, table, detail) if not owner(each)]
        )
        for table in TABLES
        for detail in DETAILS
    }


def listed(found: Inspector, table: str, detail: str) -> list[Any]:
    details = getattr(found, f"get_{detail}")(table)
    return [details] if isinstance(details, dict) else list(details)


def owner(detail: dict[str, Any]) -> bool:
    columns = (
        detail.get("column_names") or detail.get("constrained_columns") or [detail.get("name")]
    )
    return columns == ["user_id"]


async def described(engine: AsyncEngine, describe: Callable[[Connection], Any]) -> Any:
    async with engine.connect() as connection:
        return await connection.run_sync(describe)


async def test_tables_of_a_fresh_database_are_the_same_as_upstreams(backend: Backend) -> None:
    async with backend.database() as one, backend.database() as other:
        ours, theirs = create_async_engine(one), create_async_engine(other)
        try:
            await MetadataSession("s", engine=ours, create_tables=True).get_items()
            upstream = SQLAlchemySession("s", engine=theirs, create_tables=True)
            if backend.name == "mariadb":
                # Upstream cannot do it: its ids are VARCHAR without a length.
                with pytest.raises(CompileError, match="requires a length"):
                    await upstream.get_items()
                return
            await upstream.get_items()
            mine, upstreams = [await described(engine, tables_of) for engine in (ours, theirs)]
            assert mine == upstreams
            assert "idx_agent_messages_session_time" in mine["agent_messages indexes"]
            assert await sqlite_ddl(ours) == await sqlite_ddl(theirs)
        finally:
            await ours.dispose()
            await theirs.dispose()


async def sqlite_ddl(engine: AsyncEngine) -> Any:
    """The very text of the statements for the items, which SQLite keeps."""
    if engine.dialect.name != "sqlite":
        return None
    query = text(
        "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'agent_messages' ORDER BY name"
    )
    return await described(engine, lambda connection: connection.execute(query).all())
