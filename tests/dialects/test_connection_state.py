"""What the app has made of its connections: the store works under it, and leaves it as it was."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import DatabaseFailure, MetadataStore, UnsupportedEngine
from tests.support.backends import SQLITE
from tests.support.helpers import contents, user
from tests.support.using import use

# --- PostgreSQL ----------------------------------------------------------------------------------


def parsed(value: str) -> datetime:
    return datetime.fromisoformat(value)


CODECS: dict[str, dict[str, Any]] = {
    "json": {"encoder": json.dumps, "decoder": json.loads},
    "jsonb": {"encoder": json.dumps, "decoder": json.loads},
    "uuid": {"encoder": str, "decoder": str},
    "timestamptz": {"encoder": str, "decoder": str},
    "timestamp": {"encoder": datetime.isoformat, "decoder": parsed},
    "int8": {"encoder": str, "decoder": str},
    "int4": {"encoder": str, "decoder": lambda value: f"<{value}>"},
    "bool": {"encoder": str, "decoder": lambda value: {"t": "yes", "f": "no"}[value]},
    "date": {"encoder": str, "decoder": str},
}


def register(engine: AsyncEngine, *names: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        for name in names:
            options = CODECS.get(name, {"encoder": str.upper, "decoder": str.lower})
            connection.run_async(
                lambda driver, name=name, options=options: driver.set_type_codec(
                    name, schema="pg_catalog", **options
                )
            )


@pytest.mark.usefixtures("postgresql_backend")
@pytest.mark.parametrize("name", [*CODECS, "all", "all, and a listener"])
async def test_codecs(url: str, name: str) -> None:
    engine = create_async_engine(url)
    register(engine, *(CODECS if name.startswith("all") else [name]))
    if name == "all, and a listener":
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    texts = {"k": ['"', "\\", "{a,b}", "é😀", "$1", "'"]}
    await store.session("texts").set_metadata(texts)
    assert await store.session("texts").get_metadata() == texts
    await use(store)
    await engine.dispose()


@pytest.mark.usefixtures("postgresql_backend")
async def test_a_codec_for_texts_is_refused(url: str) -> None:
    engine = create_async_engine(url)
    register(engine, "text", "varchar")
    with pytest.raises(UnsupportedEngine, match="codec for text"):
        await MetadataStore(engine).create_tables()
    await engine.dispose()


SERVER_SETTINGS = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "America/Caracas",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "backslash_quote": "on",
    "lock_timeout": "60000",
    "jit": "off",
}


@pytest.mark.usefixtures("postgresql_backend")
@pytest.mark.parametrize("structured", [False, True])
async def test_settings_of_the_server(url: str, structured: bool) -> None:
    engine = create_async_engine(url, connect_args={"server_settings": SERVER_SETTINGS})
    await use(MetadataStore(engine, structured_metadata=structured))
    async with engine.connect() as connection:
        for name, value in SERVER_SETTINGS.items():
            found = await connection.scalar(text(f"SHOW {name}"))
            assert found in (value, "1min"), name
    await engine.dispose()


@pytest.mark.usefixtures("postgresql_backend")
async def test_a_read_only_engine_does_not_write(url: str, store: MetadataStore) -> None:
    settings = {"default_transaction_read_only": "on"}
    engine = create_async_engine(url, connect_args={"server_settings": settings})
    session = MetadataStore(engine).session("s")
    assert await session.get_metadata() == {}
    with pytest.raises(DatabaseFailure, match="read-only"):
        await session.set_metadata({"k": 1})
    await engine.dispose()


# --- MySQL ---------------------------------------------------------------------------------------

VARIABLES = (
    "character_set_client, character_set_connection, character_set_results, collation_connection, "
    "sql_mode, sql_safe_updates, sql_select_limit, completion_type, autocommit, "
    "innodb_lock_wait_timeout, lock_wait_timeout, foreign_key_checks, sql_notes, tx_isolation, "
    "tx_read_only, unique_checks, time_zone, wait_timeout"
)
SESSIONS = {
    "plain": "SET @nothing = 1",
    "ansi": "SET sql_mode = 'ANSI'",
    "ansi quotes": "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_TRANS_TABLES'",
    "lax": "SET sql_mode = ''",
    "empty": "SET sql_mode = 'EMPTY_STRING_IS_NULL,PAD_CHAR_TO_FULL_LENGTH,IGNORE_SPACE'",
    "grouping": "SET sql_mode = 'ONLY_FULL_GROUP_BY,HIGH_NOT_PRECEDENCE,TRADITIONAL'",
    "safe": "SET sql_safe_updates = 1, sql_select_limit = 2, max_join_size = 1000000",
    "chain": "SET completion_type = 'CHAIN'",
    "autocommit": "SET autocommit = 1",
    "uncommitted": "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    "serializable": "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "committed": "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "patient": "SET innodb_lock_wait_timeout = 77, lock_wait_timeout = 78",
    "unchecked": "SET foreign_key_checks = 0, unique_checks = 0",
    "zone": "SET time_zone = '-04:30'",
    "collation": "SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci",
}


def say(engine: AsyncEngine, statement: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()


async def variables(engine: AsyncEngine) -> Any:
    query = ", ".join(f"@@SESSION.{name}" for name in VARIABLES.split(", "))
    async with engine.connect() as connection:
        return (await connection.exec_driver_sql(f"SELECT {query}")).one()


@pytest.mark.usefixtures("mariadb_backend")
@pytest.mark.parametrize("name", SESSIONS)
async def test_sessions_of_mysql(url: str, name: str) -> None:
    engine = create_async_engine(url, pool_size=1, max_overflow=1)
    say(engine, SESSIONS[name])
    before = await variables(engine)
    store = MetadataStore(engine, structured_metadata=True)
    await use(store, 'it\'s \\ a "word" é😀')
    await engine.dispose()
    await store.session("again").add_items([user("x")])
    async with engine.connect() as connection:
        await store.session("again").add_items([user("y")], connection=connection)
        large = store.session("again", max_value_bytes=2**30)
        with pytest.raises(DatabaseFailure):
            await large.set_metadata({"k": "x" * 2**24}, connection=connection)
        await connection.commit()
    assert await variables(engine) == before
    await engine.dispose()


@pytest.mark.usefixtures("mariadb_backend")
@pytest.mark.parametrize("charset", ["latin1", "gbk", "utf8", "utf8mb4"])
async def test_charsets(url: str, charset: str) -> None:
    """The app reads and writes as before; so does the store, whatever the driver speaks."""
    engine = create_async_engine(url.replace("charset=utf8mb4", f"charset={charset}"))
    word = {"latin1": "café", "gbk": "中文"}.get(charset, "é中")
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE TABLE own (word VARCHAR(20)) DEFAULT CHARSET utf8mb4"
        )

    async def write_and_read() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO own VALUES (:word)"), {"word": word})
        async with engine.connect() as connection:
            words = (await connection.execute(text("SELECT word FROM own"))).scalars().all()
            assert set(words) == {word}

    await write_and_read()
    store = MetadataStore(engine)
    await use(store, "é中😀")
    await store.session("s").add_items([user("é中😀")])
    await write_and_read()
    other = create_async_engine(url)
    assert contents(await MetadataStore(other).session("s").get_items()) == ["é中😀"]
    async with other.connect() as connection:
        words = (await connection.execute(text("SELECT word FROM own"))).scalars().all()
        assert set(words) == {word}
    await other.dispose()
    await engine.dispose()


# --- SQLite --------------------------------------------------------------------------------------

PRAGMAS = ("synchronous", "busy_timeout", "foreign_keys", "journal_mode", "cache_size")
CONNECTIONS = {
    "plain": (),
    "fast": ("PRAGMA synchronous = OFF", "PRAGMA busy_timeout = 20"),
    "patient": ("PRAGMA busy_timeout = 61000", "PRAGMA synchronous = EXTRA"),
    "checked": ("PRAGMA foreign_keys = ON", "PRAGMA recursive_triggers = ON"),
    "truncating": ("PRAGMA journal_mode = TRUNCATE",),
    "careful": ("PRAGMA query_only = OFF", "PRAGMA case_sensitive_like = ON"),
}


async def pragmas(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in PRAGMAS]


@pytest.mark.usefixtures("sqlite_file_backend")
@pytest.mark.parametrize("name", CONNECTIONS)
async def test_connections_of_sqlite(url: str, name: str) -> None:
    engine = create_async_engine(url)
    for statement in CONNECTIONS[name]:
        say(engine, statement)
    before = await pragmas(engine)
    await use(MetadataStore(engine, structured_metadata=True))
    after = await pragmas(engine)
    journal = PRAGMAS.index("journal_mode")
    if before[journal] == "delete":  # which is what a file has before anybody has chosen
        before[journal] = "wal"
    assert after == before
    await engine.dispose()


@pytest.mark.usefixtures("sqlite_file_backend")
async def test_an_acknowledged_write_is_durable_whatever_the_app_has_set(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_async_engine(url)
    say(engine, "PRAGMA synchronous = OFF")
    store = MetadataStore(engine)
    await store.create_tables()
    seen = await levels(store, lambda: store.session("s").set_metadata({"k": 1}), monkeypatch)
    assert seen == {2}
    await engine.dispose()


async def levels(
    store: MetadataStore, call: Callable[[], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> set[int]:
    """The levels of ``synchronous`` at which statements are run."""
    from eventmeta.dialects.sqlite import driver as running

    seen: set[int] = set()
    execute = running._execute

    def watched(connection: sqlite3.Connection, query: Any) -> Any:
        if connection.in_transaction:
            seen.add(connection.execute("PRAGMA synchronous").fetchone()[0])
        return execute(connection, query)

    monkeypatch.setattr(running, "_execute", watched)
    await call()
    return seen


@pytest.mark.usefixtures("sqlite_file_backend")
@pytest.mark.parametrize("structured", [False, True])
async def test_rows_and_texts_as_the_app_wants_them(url: str, structured: bool) -> None:
    engine = create_async_engine(url)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.driver_connection._conn.row_factory = sqlite3.Row
        connection.driver_connection._conn.text_factory = bytes

    await use(MetadataStore(engine, structured_metadata=structured))
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT 'a'")
        assert found.scalar() == b"a"
    await engine.dispose()


@pytest.mark.only_on(*SQLITE)
async def test_a_message_may_come_before_its_session(engine: AsyncEngine) -> None:
    """On SQLite, as upstream leaves it: foreign keys are for the app to turn on."""
    await MetadataStore(engine).create_tables()
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('later', '{}')"
        )
        await connection.exec_driver_sql("INSERT INTO agent_sessions (session_id) VALUES ('later')")
    assert len(await MetadataStore(engine).session("later").get_items()) == 1
