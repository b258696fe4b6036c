"""Tables that others made are used exactly, widened, or refused with what mends them."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from agents.extensions.memory import AdvancedSQLiteSession
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    MetadataSession,
    MetadataStore,
    SettingsConflict,
    TablesMissing,
    UnexpectedRowCount,
    UnsupportedSchema,
    backfill_conversations,
    verify_projection,
)
from tests.support.backends import SQLITE, Backend
from tests.support.helpers import contents, user, users
from tests.support.sample_projections import rows, tag, tags

SESSIONS = {
    "mariadb": "CREATE TABLE agent_sessions (session_id VARCHAR(255) PRIMARY KEY, "
    "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL, "
    "updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL) COLLATE utf8mb4_nopad_bin",
    "postgresql": "CREATE TABLE agent_sessions (session_id VARCHAR PRIMARY KEY, "
    "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL, "
    "updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)",
}
SESSIONS["sqlite"] = SESSIONS["postgresql"]
MESSAGES = {
    "mariadb": "CREATE TABLE agent_messages (id INTEGER PRIMARY KEY AUTO_INCREMENT, "
    "session_id VARCHAR(255) NOT NULL, message_data LONGTEXT NOT NULL, "
    "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL, FOREIGN KEY (session_id) "
    "REFERENCES agent_sessions (session_id) ON DELETE CASCADE) COLLATE utf8mb4_nopad_bin",
    "postgresql": "CREATE TABLE agent_messages (id SERIAL PRIMARY KEY, "
    "session_id VARCHAR NOT NULL REFERENCES agent_sessions (session_id) ON DELETE CASCADE, "
    "message_data TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)",
    "sqlite": "CREATE TABLE agent_messages (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "session_id VARCHAR NOT NULL REFERENCES agent_sessions (session_id) ON DELETE CASCADE, "
    "message_data TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)",
}


def kind_of(backend: Backend) -> str:
    return backend.name if backend.is_server else "sqlite"


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement.replace("%", "%%"))


async def existing(engine: AsyncEngine, backend: Backend, old: str = "", new: str = "") -> None:
    """Tables of upstream's kind in which ``old`` is ``new``, with a row."""
    for ddl in (SESSIONS[kind_of(backend)], MESSAGES[kind_of(backend)]):
        await execute(engine, ddl.replace(old, new) if old else ddl)


async def forget(engine: AsyncEngine) -> None:
    """Let what comes next open the database for the first time."""
    for log in [*vars(engine.sync_engine)["eventmeta_logs"].values()]:
        await log.close()


async def fill(engine: AsyncEngine) -> None:
    await execute(
        engine,
        "INSERT INTO agent_sessions (session_id) VALUES ('a')",
        "INSERT INTO agent_messages (session_id, message_data) VALUES "
        """('a', '{"role": "user", "content": "old"}')""",
    )


async def assert_exact(engine: AsyncEngine) -> None:
    """What is acknowledged comes back byte for byte, however large and whatever it is."""
    session = MetadataStore(engine).session("a")
    large = users("x" * 70_000, "1", " é€😀 ", "y" * 300)
    before = await session.get_items()
    await session.add_items(large)
    assert await session.get_items() == [*before, *large]
    assert [await session.pop_item() for _ in large] == large[::-1]
    assert await session.get_items() == before
    await MetadataStore(engine).session("s" * 255).add_items(users("b"))
    assert await verify_projection(MetadataStore(engine)) == []


# --- Widened -------------------------------------------------------------------------------------

WIDENED = {
    "mariadb": [
        ("LONGTEXT", "TEXT"),
        ("LONGTEXT", "MEDIUMTEXT"),
        ("LONGTEXT", "VARCHAR(1000)"),
        ("LONGTEXT", "LONGTEXT CHARACTER SET utf8mb3"),
    ],
    "postgresql": [
        ("message_data TEXT", "message_data VARCHAR(1000)"),
        ("session_id VARCHAR", "session_id VARCHAR(64)"),
    ],
}


@pytest.mark.parametrize("case", range(4))
async def test_a_column_that_is_too_narrow_is_widened(
    server_backend: Backend, engine: AsyncEngine, case: int
) -> None:
    cases = WIDENED[server_backend.name]
    await existing(engine, server_backend, *cases[case % len(cases)])
    await fill(engine)
    with pytest.raises(UnsupportedSchema, match=r"create_tables\(\)") as refused:
        await MetadataStore(engine).session("a").get_items()
    assert refused.value.statements
    store = MetadataStore(engine)
    await store.create_tables()
    assert await store.schema_sql() == ""
    assert contents(await store.session("a").get_items()) == ["old"]
    await assert_exact(engine)


# --- Refused -------------------------------------------------------------------------------------

REFUSED: dict[str, list[tuple[str, str, str]]] = {
    "mariadb": [
        ("utf8mb4_nopad_bin", "utf8mb4_bin", "session_id"),
        ("utf8mb4_nopad_bin", "utf8mb4_general_ci", "session_id"),
        ("utf8mb4_nopad_bin", "latin1_swedish_ci", "session_id"),
        ("utf8mb4_nopad_bin", "utf8mb3_bin", "session_id"),
        ("session_id VARCHAR(255)", "session_id VARCHAR(64)", "session_id"),
        ("id INTEGER PRIMARY KEY", "id SMALLINT PRIMARY KEY", "id"),
        ("INTEGER PRIMARY KEY AUTO_INCREMENT", "INTEGER PRIMARY KEY", "id"),
        ("LONGTEXT NOT NULL", "LONGBLOB NOT NULL", "message_data"),
        ("LONGTEXT NOT NULL", "LONGTEXT NOT NULL, tenant INT NOT NULL", "tenant"),
        ("LONGTEXT NOT NULL", "LONGTEXT AS ('x') STORED", "message_data"),
        ("(255) PRIMARY KEY", "(255), t INT DEFAULT 1, PRIMARY KEY (session_id, t)", "session_id"),
        ("TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL", "DATETIME(3) NULL", "created_at"),
        ("TIMESTAMP DEFAULT CURRENT_TIMESTAMP", "DATETIME DEFAULT '2020-01-02'", "created_at"),
    ],
    "postgresql": [
        ("message_data TEXT", "message_data JSONB", "message_data"),
        ("message_data TEXT", "message_data JSON", "message_data"),
        ("message_data TEXT", "message_data CHAR(2000)", "message_data"),
        ("session_id VARCHAR", "session_id UUID", "session_id"),
        ("id SERIAL", "id SMALLSERIAL", "id"),
        ("id SERIAL", "id INTEGER", "id"),
        ("id SERIAL", "id INTEGER GENERATED ALWAYS AS IDENTITY", "id"),
        ("created_at TIMESTAMP DEFAULT", "created_at TIMESTAMPTZ DEFAULT", "created_at"),
        ("TEXT NOT NULL", "TEXT NOT NULL, tenant INT NOT NULL", "tenant"),
        ("TEXT NOT NULL", "TEXT GENERATED ALWAYS AS ('x') STORED", "message_data"),
        ("CURRENT_TIMESTAMP NOT NULL", "CURRENT_TIMESTAMP", "created_at"),
        ("id SERIAL", "id INT GENERATED BY DEFAULT AS IDENTITY (CACHE 50)", "id"),
        ("id SERIAL", "id INT GENERATED BY DEFAULT AS IDENTITY (INCREMENT -1)", "id"),
    ],
    "sqlite": [
        ("message_data TEXT", "message_data INTEGER", "message_data"),
        ("message_data TEXT", "message_data NUMERIC", "message_data"),
        ("message_data TEXT", "message_data JSON", "message_data"),
        ("session_id VARCHAR", "session_id INTEGER", "session_id"),
        ("session_id VARCHAR", "session_id VARCHAR COLLATE NOCASE", "session_id"),
        ("INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT PRIMARY KEY", "id"),
        ("TEXT NOT NULL", "TEXT NOT NULL, tenant INT NOT NULL", "tenant"),
        ("TEXT NOT NULL", "TEXT GENERATED ALWAYS AS ('x')", "message_data"),
        ("session_id VARCHAR PRIMARY KEY", "session_id VARCHAR", "session_id"),
        ("updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL", "u INT", "updated_at"),
        ("INTEGER PRIMARY KEY AUTOINCREMENT", "INTEGER PRIMARY KEY DESC", "id"),
        ("INTEGER PRIMARY KEY AUTOINCREMENT", "INT PRIMARY KEY", "id"),
        ("created_at TIMESTAMP DEFAULT", "created_at REAL DEFAULT", "created_at"),
    ],
}


@pytest.mark.parametrize("case", range(13))
async def test_a_column_that_cannot_hold_it_is_refused_with_what_mends_it(
    persistent_backend: Backend, engine: AsyncEngine, case: int
) -> None:
    old, new, column = REFUSED[kind_of(persistent_backend)][case]
    await existing(engine, persistent_backend, old, new)
    store = MetadataStore(engine)
    with pytest.raises(UnsupportedSchema, match=rf"column {column} of table agent_") as refused:
        await store.create_tables()
    error = refused.value
    assert error.table in ("agent_sessions", "agent_messages")
    assert error.column == column
    for call in (store.schema_sql, store.session("a").get_items):
        with pytest.raises(UnsupportedSchema):
            await call()
    if error.statements:
        plain = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with plain.connect() as connection:
            for statement in error.statements:
                await connection.exec_driver_sql(statement)
        await store.create_tables()
        await assert_exact(engine)


async def test_items_without_a_time_stay_where_they_were(
    server_backend: Backend, engine: AsyncEngine
) -> None:
    """MariaDB reads them before all others, and PostgreSQL after all others."""
    await existing(engine, server_backend, "DEFAULT CURRENT_TIMESTAMP NOT NULL", "NULL")
    await execute(
        engine,
        "INSERT INTO agent_sessions (session_id) VALUES ('a')",
        "INSERT INTO agent_messages (session_id, message_data, created_at) VALUES "
        """('a', '{"role": "user", "content": "1"}', '2020-01-02 03:04:05'), """
        """('a', '{"role": "user", "content": "2"}', NULL), """
        """('a', '{"role": "user", "content": "3"}', NULL)""",
    )
    with pytest.raises(UnsupportedSchema, match="created_at of table agent_messages") as refused:
        await MetadataStore(engine).create_tables()
    await execute(engine, *refused.value.statements)
    await MetadataStore(engine).create_tables()
    session = MetadataSession("a", engine=engine)
    await session.add_items(users("4"))
    timed = 2 if server_backend.name == "mariadb" else 0
    items = ["2", "3", "4"]
    items.insert(timed, "1")
    assert contents(await session.get_items()) == items


async def test_a_view_in_place_of_a_table_is_refused(
    persistent_backend: Backend, engine: AsyncEngine
) -> None:
    await existing(engine, persistent_backend, "agent_", "real_")
    await execute(engine, "CREATE VIEW agent_sessions AS SELECT * FROM real_sessions")
    with pytest.raises(UnsupportedSchema, match="agent_sessions is a view") as refused:
        await MetadataStore(engine).create_tables()
    assert refused.value.column is None


@pytest.mark.usefixtures("mariadb_backend")
async def test_a_table_without_transactions_is_refused(
    backend: Backend, engine: AsyncEngine
) -> None:
    await existing(engine, backend, "COLLATE utf8mb4_nopad_bin", "ENGINE=Aria")
    with pytest.raises(UnsupportedSchema, match="ENGINE = InnoDB"):
        await MetadataStore(engine).create_tables()


async def test_what_only_looks_different_works(
    persistent_backend: Backend, engine: AsyncEngine
) -> None:
    changed = {
        "mariadb": ("id INTEGER PRIMARY KEY", "id BIGINT UNSIGNED PRIMARY KEY"),
        "postgresql": ("id SERIAL", "id BIGINT GENERATED BY DEFAULT AS IDENTITY"),
        "sqlite": ("message_data TEXT", "message_data"),
    }
    await existing(engine, persistent_backend, *changed[kind_of(persistent_backend)])
    await fill(engine)
    await MetadataStore(engine).create_tables()
    await assert_exact(engine)


async def test_ids_beyond_32_bits(server_backend: Backend, engine: AsyncEngine) -> None:
    wide = {"mariadb": ("id INTEGER", "id BIGINT"), "postgresql": ("id SERIAL", "id BIGSERIAL")}
    await existing(engine, server_backend, *wide[server_backend.name])
    await fill(engine)
    last = 2**40
    await execute(
        engine,
        f"ALTER TABLE agent_messages AUTO_INCREMENT = {last}"
        if server_backend.name == "mariadb"
        else f"SELECT setval('agent_messages_id_seq', {last})",
    )
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    session = store.session("a")
    added = await session.add_items(users("b", "c", "d"))
    assert added is not None
    assert min(added.data["item_ids"]) >= last
    assert await session.pop_item() == user("d")
    assert contents(await session.get_items()) == ["old", "b", "c"]
    assert [turn.content for turn in await session.get_turns()] == ["old", "b", "c"]
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items(users("e"))
    assert await verify_projection(store) == []


# --- Rows that the database keeps from being written ---------------------------------------------


async def swallow(engine: AsyncEngine, backend: Backend, table: str, attack: str) -> None:
    """Let the database leave out what is said, without an error."""
    if backend.name == "postgresql":
        await execute(
            engine,
            f"CREATE FUNCTION swallow_{attack}() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RETURN NULL; END$$",
            f"CREATE TRIGGER swallow BEFORE {attack} ON {table} FOR EACH ROW "
            f"EXECUTE FUNCTION swallow_{attack}()",
        )
    else:
        await execute(
            engine,
            f"CREATE TRIGGER swallow BEFORE {attack} ON {table} BEGIN SELECT RAISE(IGNORE); END",
        )


@pytest.mark.only_on(*SQLITE, "postgresql")  # triggers of MariaDB can only fail
@pytest.mark.parametrize("call", ["pop_item", "clear_session", "add_items"])
async def test_what_the_database_leaves_out_is_a_failure(
    engine: AsyncEngine, backend: Backend, call: str
) -> None:
    store = MetadataStore(engine)
    await store.create_tables()
    session = store.session("a")
    await session.add_items(users("b", "c"))
    before = await session.get_items(), await session.history()
    await swallow(engine, backend, "agent_messages", "INSERT" if call == "add_items" else "DELETE")
    with pytest.raises(UnexpectedRowCount) as refused:
        await getattr(session, call)(*([users("d")] if call == "add_items" else []))
    assert (refused.value.actual, refused.value.expected) == (0, 2 if "clear" in call else 1)
    assert (await session.get_items(), await session.history()) == before


# --- What the database says of itself ------------------------------------------------------------


async def test_structured_tables_are_a_fact_of_the_database(engine: AsyncEngine) -> None:
    plain, structured = MetadataStore(engine), MetadataStore(engine, structured_metadata=True)
    await plain.create_tables()
    await plain.session("a").add_items(users("b"))
    for call in (
        structured.create_tables,
        structured.schema_sql,
        structured.session("a").get_turns,
        lambda: structured.session("a").add_items(users("c")),
        lambda: structured.session("a", create_tables=True).add_items(users("c")),
    ):
        with pytest.raises(SettingsConflict, match="turn_on_structured_metadata=True"):
            await call()
    await structured.create_tables(turn_on_structured_metadata=True)
    await backfill_conversations(structured)
    assert [turn.content for turn in await structured.session("a").get_turns()] == ["b"]
    without = MetadataStore(engine, structured_metadata=False)
    for call in (without.create_tables, without.session("a").get_items):
        with pytest.raises(SettingsConflict, match="structured_metadata=True"):
            await call()


FIRST: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "add": lambda store: store.session("a").add_items(users("late")),
    "turns": lambda store: store.session("a").get_turns(),
    "usage": lambda store: store.get_usage(),
    "tables": lambda store: store.create_tables(),
    "script": lambda store: store.schema_sql(),
    "verify": verify_projection,
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("within", [False, True])
async def test_a_store_that_is_not_told_follows_the_database(
    engine: AsyncEngine, first: str, within: bool
) -> None:
    """With the app's own projection, whose table was registered before."""
    told, untold = MetadataStore(engine, structured_metadata=True), MetadataStore(engine)
    for each in (told, untold):
        each.register(tags(), inline=True)
    await told.create_tables()
    await told.session("a").add_items(users("early"))
    if within:
        async with engine.begin() as connection:
            await untold.session("a").set_metadata({"k": 1}, connection=connection)
    await FIRST[first](untold)
    await untold.create_tables()
    await untold.session("a").add_items(users("last"))
    turns = [turn.content for turn in await untold.session("a").get_turns()]
    assert turns == [turn.content for turn in await told.session("a").get_turns()]
    assert (turns[0], turns[-1]) == ("early", "last")
    assert await verify_projection(untold) == await verify_projection(told) == []
    await untold.append("a", tag("red"))
    assert len(await rows(untold, "tags")) == 1
    assert await verify_projection(told) == []
    await untold.close()


@pytest.mark.parametrize("structured", [False, True])
async def test_an_older_database_has_what_its_tables_say(
    engine: AsyncEngine, structured: bool
) -> None:
    await MetadataStore(engine, structured_metadata=structured).create_tables()
    await forget(engine)
    await execute(engine, "DROP TABLE agent_store_settings")
    with pytest.raises(TablesMissing, match="agent_store_settings"):
        await MetadataStore(engine, structured_metadata=structured).session("a").get_items()
    with pytest.raises(SettingsConflict):
        await MetadataStore(engine, structured_metadata=not structured).create_tables()
    await MetadataStore(engine, structured_metadata=structured).create_tables()
    await MetadataStore(engine, structured_metadata=structured).session("a").get_items()


async def test_an_older_or_newer_schema_is_told(engine: AsyncEngine) -> None:
    await MetadataStore(engine).create_tables()
    await forget(engine)
    version = "UPDATE agent_store_settings SET value = '{}' WHERE name = 'schema_version'"
    await execute(engine, version.format(0))
    with pytest.raises(TablesMissing, match=r"version 0.*create_tables\(\)"):
        await MetadataStore(engine).session("a").get_items()
    await execute(engine, version.format(99))
    with pytest.raises(SettingsConflict, match="update eventmeta"):
        await MetadataStore(engine).create_tables()


async def test_a_write_in_the_callers_transaction_checks_too(engine: AsyncEngine) -> None:
    await MetadataStore(engine).create_tables()
    structured = MetadataStore(engine, structured_metadata=True)
    async with engine.connect() as connection:
        with pytest.raises(SettingsConflict):
            await structured.session("a").set_metadata({"k": 1}, connection=connection)


# --- Two pairs in one database -------------------------------------------------------------------

ONE: Any = {"sessions_table": "app1_sessions", "messages_table": "app1_messages"}
TWO: Any = {"sessions_table": "app2_sessions", "messages_table": "app2_messages"}
ODD: Any = {"sessions_table": "Chats", "messages_table": "lines"}


@pytest.mark.parametrize("structured", [False, True])
async def test_two_pairs_share_nothing(engine: AsyncEngine, structured: bool) -> None:
    pairs: list[Any] = [ONE, TWO, ODD, {}]
    stores = [MetadataStore(engine, structured_metadata=structured, **names) for names in pairs]
    for n, store in enumerate(stores):
        await store.create_tables()
        await store.session("chat", user_id=f"user {n}").add_items(users(f"of {n}"))
        await store.session("chat").set_metadata({"n": n})
    for n, store in enumerate(stores):
        session = store.session("chat")
        assert contents(await session.get_items()) == [f"of {n}"]
        assert await session.get_metadata() == {"n": n}
        assert await store.find_sessions_by_metadata("n", (n + 1) % 4) == []
        if structured:
            assert [turn.content for turn in await session.get_turns()] == [f"of {n}"]
    await stores[0].session("chat").clear_session()
    for n, store in enumerate(stores[1:], 1):
        assert await store.session("chat").get_metadata() == {"n": n}
        assert contents(await store.session("chat").get_items()) == [f"of {n}"]
        assert await verify_projection(store) == []


async def test_a_history_under_the_default_names_is_not_left_behind(engine: AsyncEngine) -> None:
    """As in a database that a store with other names for its derived tables has filled."""
    default = MetadataStore(engine)._log.database.tables.names
    beside = {
        name: value
        for name, value in vars(default).items()
        if name.endswith(("_table", "_view")) and name not in ONE
    }
    explicit: Any = {**ONE, **beside}
    await MetadataStore(engine, **explicit).create_tables()
    await MetadataStore(engine, **explicit).session("a").set_metadata({"k": 1})
    with pytest.raises(SettingsConflict, match='events_table="agent_events"') as refused:
        await MetadataStore(engine, **ONE).create_tables()
    named = dict(re.findall(r'(\w+)="(\w+)"', str(refused.value)))
    assert named == beside
    assert await MetadataStore(engine, **ONE, **named).session("a").get_metadata() == {"k": 1}


# --- Branches of upstream's ----------------------------------------------------------------------


@pytest.mark.usefixtures("sqlite_file_backend")
@pytest.mark.parametrize("structured", [False, True])
async def test_only_the_main_branch_is_opened(
    engine: AsyncEngine, structured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(str(engine.url.database))
    theirs = AdvancedSQLiteSession(session_id="s", db_path=path, create_tables=True)
    await theirs.add_items(users("a", "b"))
    await theirs.create_branch_from_turn(2, "draft")
    await theirs.add_items(users("in the draft"))
    store = MetadataStore(engine, structured_metadata=structured)
    with caplog.at_level(logging.WARNING, "eventmeta"):
        await store.create_tables()
    assert "only the items of the branch 'main'" in caplog.text
    assert await store.schema_sql() == ""
    session: MetadataSession = store.session("s")
    assert await session.get_items() == users("a", "b")
    assert await session.get_items(1) == users("b")
    if structured:
        await backfill_conversations(store)
        assert [turn.content for turn in await session.get_turns()] == ["a", "b"]
    await session.add_items(users("c"))
    assert await session.get_items() == users("a", "b", "c")
    assert await session.pop_item() == user("c")
    assert await session.pop_item() == user("b")
    assert await theirs.get_items() == users("a", "in the draft")
    if structured:
        assert [turn.content for turn in await session.get_turns()] == ["a"]
    assert await verify_projection(store) == []
    cleared = await session.clear_session()
    assert cleared is not None
    assert len(cleared.data["item_ids"]) == 2
    theirs.close()
