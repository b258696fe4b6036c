"""Every database that is not complete becomes so, in place, and loses nothing."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    TableClause,
    column,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    DatabaseFailure,
    MetadataSession,
    MetadataStore,
    UnsupportedSchema,
    verify_projection,
)
from eventmeta.dialects.statement import Statement
from eventmeta.tables.names import TableNames
from projections.types import SessionId
from tests.support.backends import Backend
from tests.support.helpers import contents, user, users
from tests.support.processes import ROOT, race

Origin = Callable[[AsyncEngine, Backend], Awaitable[None]]

GUIDE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def statements_of(script: str) -> list[str]:
    """Each ends with a semicolon; a blank line is between two."""
    return [part.removesuffix(";") for part in script.strip().split(";\n\n") if part]


# --- Where databases come from -------------------------------------------------------------------

UPSTREAM_ON_MARIADB = (
    "CREATE TABLE agent_sessions (session_id VARCHAR(255) NOT NULL, "
    "created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, "
    "updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (session_id)"
    ") DEFAULT CHARSET=utf8mb4 COLLATE utf8mb4_nopad_bin",
    "CREATE TABLE agent_messages (id INTEGER NOT NULL AUTO_INCREMENT, "
    "session_id VARCHAR(255) NOT NULL, message_data LONGTEXT NOT NULL, "
    "created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (id), "
    "FOREIGN KEY(session_id) REFERENCES agent_sessions (session_id) ON DELETE CASCADE"
    ") DEFAULT CHARSET=utf8mb4 COLLATE utf8mb4_nopad_bin",
    "CREATE INDEX idx_agent_messages_session_time ON agent_messages (session_id, created_at)",
)
"""Upstream cannot create them there, for they need lengths; whoever uses it has made them so."""


async def execute(engine: AsyncEngine, statements: list[str] | tuple[str, ...]) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def upstreams(engine: AsyncEngine, backend: Backend) -> None:
    """Tables and rows of upstream's."""
    if backend.name == "mariadb":
        await execute(engine, UPSTREAM_ON_MARIADB)
    for name in ("alpha", "beta"):
        theirs = SQLAlchemySession(name, engine=engine, create_tables=backend.name != "mariadb")
        await theirs.add_items(users(*(f"{name} {n}" for n in range(5))))


async def an_older_one_of_ours(engine: AsyncEngine, backend: Backend) -> None:
    """Without users, with all rows that a current one has otherwise."""
    store = MetadataStore(engine)
    ddl = statements_of(await store.schema_sql())
    ddl = [
        each
        for each in ddl
        if not re.match(r"CREATE (TABLE .*agent_users|INDEX .*user_id)", each)
        and "agent_store_settings" not in each
    ]
    ddl = [re.sub(r"\n.*user_id.*", "", statement) for statement in ddl]
    await execute(engine, [re.sub(r",\s*\n\)", "\n)", statement) for statement in ddl])
    async with backend.database() as url:
        donor = create_async_engine(url)
        try:
            await fill(MetadataStore(donor))
            await copy(donor, engine, store)
        finally:
            await donor.dispose()


async def fill(store: MetadataStore) -> None:
    await store.create_tables()
    for name in ("alpha", "beta"):
        session = store.session(name)
        await session.add_items(users(*(f"{name} {n}" for n in range(6))))
        await session.set_metadata({"title": name, "draft": 1})
        await session.pop_item()
        await session.delete_metadata(["draft"])


async def copy(donor: AsyncEngine, engine: AsyncEngine, store: MetadataStore) -> None:
    tables = store.log.database.tables
    async with donor.connect() as source, engine.begin() as target:
        for table in tables.metadata.sorted_tables:
            if table in (tables.users.table, tables.settings):
                continue
            names = [each.name for each in table.columns if each.name != "user_id"]
            plain = TableClause(table.name, *map(column, names))  # values as they are
            rows = (await source.execute(select(plain))).mappings().all()
            if rows:
                await target.execute(insert(plain), [dict(row) for row in rows])
        if engine.dialect.name == "postgresql":  # the numbers were not drawn from the sequences
            for sequence, number in (
                ("agent_messages_id_seq", tables.messages.c.id),
                ("agent_events_position_seq", tables.events.c.position),
            ):
                await target.execute(select(func.setval(sequence, func.max(number))))


ORIGINS: dict[str, Origin] = {"upstream": upstreams, "older": an_older_one_of_ours}
origins = pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)


# --- What is compared ----------------------------------------------------------------------------


async def schema_of(engine: AsyncEngine) -> dict[str, Any]:
    """Columns, keys and indexes of each table as the database itself describes them."""

    def reflect(connection: Any) -> dict[str, Any]:
        known = inspect(connection)
        found: dict[str, Any] = {"views": known.get_view_names()}
        for table in sorted(known.get_table_names()):
            found[table] = [
                [
                    (each["name"], str(each["type"]), each["nullable"], each["default"])
                    for each in known.get_columns(table)
                ],
                known.get_pk_constraint(table)["constrained_columns"],
                foreign_keys_of(connection, table),
                sorted(map(described, known.get_indexes(table))),
                sorted(map(repr, known.get_unique_constraints(table))),
            ]
        return found

    store = MetadataStore(engine)
    dialect, tables = store.log.database.dialect, store.log.database.tables
    parts = Statement(dialect.list_parts([*tables.metadata.tables, "agent_metadata_changes"]), ())
    (rows,) = await dialect.read([parts()])
    async with engine.connect() as connection:
        return {**await connection.run_sync(reflect), "parts": sorted(map(tuple, rows))}


def described(index: Any) -> str:
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return repr({**index, "dialect_options": options})


def foreign_keys_of(connection: Any, table: str) -> list[str]:
    if connection.dialect.name != "sqlite":
        return sorted(map(repr, inspect(connection).get_foreign_keys(table)))
    # SQLAlchemy overlooks what a key that stands with its column says of deletion.
    return sorted(map(repr, connection.exec_driver_sql(f"PRAGMA foreign_key_list({table})")))


async def select_rows(engine: AsyncEngine) -> dict[str, list[Any]]:
    """All rows of all tables, without the column that is new."""

    def reflect(connection: Any) -> MetaData:
        found = MetaData()
        found.reflect(connection)
        return found

    async with engine.connect() as connection:
        tables = (await connection.run_sync(reflect)).tables.values()
        return {
            table.name: sorted(
                map(
                    repr,
                    await connection.execute(
                        select(*(each for each in table.columns if each.name != "user_id"))
                    ),
                )
            )
            for table in tables
            if table.name != "agent_users"
        }


async def content_of(store: MetadataStore, name: str) -> list[Any]:
    session = store.session(name)
    return [
        await session.get_items(),
        await session.get_metadata(),
        [(entry.version, entry.event) for entry in await session.history()],
    ]


@pytest.fixture
async def complete(backend: Backend) -> dict[str, Any]:
    """The schema of a database that was created empty."""
    async with backend.database() as url, engine_on(url) as engine:
        await MetadataStore(engine).create_tables()
        return await schema_of(engine)


@asynccontextmanager
async def engine_on(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


async def assert_complete(
    engine: AsyncEngine, complete: dict[str, Any], before: dict[str, list[Any]]
) -> None:
    """It has the schema of a new one and the rows of before, and works."""
    assert await schema_of(engine) == complete
    after = await select_rows(engine)
    assert {name: after[name] for name in before} == before
    store = MetadataStore(engine)
    assert await store.schema_sql() == ""
    session = store.session("alpha")
    items = await session.get_items()
    assert contents(items) == [f"alpha {n}" for n in range(5)]
    if before.get("agent_events"):
        assert await session.get_metadata() == {"title": "alpha"}
        assert [entry.version for entry in await session.history()] == [1, 2, 3, 4]
    await session.add_items(users("new"))
    await session.set_metadata({"k": 1})
    await store.session("gamma").add_items(users("new"))
    assert await SQLAlchemySession("alpha", engine=engine).get_items() == [*items, user("new")]
    assert await verify_projection(MetadataStore(engine)) == []


# --- The three ways ------------------------------------------------------------------------------


async def by_create_tables(engine: AsyncEngine, url: str) -> None:
    await MetadataStore(engine).create_tables()


async def by_schema_sql(engine: AsyncEngine, url: str) -> None:
    await run_plainly(url, statements_of(await MetadataStore(engine).schema_sql()))


async def by_client(engine: AsyncEngine, url: str) -> None:
    """The database's own client reads the script, as text."""
    script = await MetadataStore(engine).schema_sql()
    await asyncio.to_thread(run_in_client, url, script)


async def by_guide(engine: AsyncEngine, url: str) -> None:
    await run_plainly(url, statements_of(script_in_guide(engine)))


async def run_plainly(url: str, statements: list[str]) -> None:
    """Each a transaction of its own, on an engine that eventmeta does not know."""
    plain = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with plain.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
    finally:
        await plain.dispose()


def run_in_client(url: str, script: str) -> None:
    where = make_url(url)
    match where.get_backend_name():
        case "sqlite":
            execute = (
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())"
            )
            command = [sys.executable, "-c", execute, str(where.database)]
        case "postgresql":
            address = where.set(drivername="postgresql").render_as_string(hide_password=False)
            command = ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", address]
        case _:
            socket = where.query.get("unix_socket")
            command = ["mariadb", "--no-defaults", f"--user={where.username}"]
            command += [f"--password={where.password or ''}"]
            command += (
                [f"--socket={socket}"]
                if socket
                else [f"--host={where.host}", f"--port={where.port or 3306}"]
            )
            command += [str(where.database)]
    assert shutil.which(command[0]), f"install {command[0]}, the client of the server under test"
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def script_in_guide(engine: AsyncEngine) -> str:
    heading = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(engine.dialect.name, "MariaDB")
    found = re.search(rf"^### {heading}$.*?^```sql\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


WAYS = {"create_tables": by_create_tables, "schema_sql": by_schema_sql, "client": by_client}


@origins
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_database_is_migrated_in_place(
    persistent_backend: Backend, url: str, complete: dict[str, Any], origin: Origin, way: Any
) -> None:
    async with engine_on(url) as engine:
        await origin(engine, persistent_backend)
        before = await select_rows(engine)
    async with engine_on(url) as engine:
        await way(engine, url)
        await assert_complete(engine, complete, before)


@origins
async def test_a_call_that_creates_tables_migrates(
    engine: AsyncEngine, backend: Backend, complete: dict[str, Any], origin: Origin
) -> None:
    await origin(engine, backend)
    before = await select_rows(engine)
    session = MetadataSession("alpha", engine=engine, create_tables=True)
    assert contents(await session.get_items()) == [f"alpha {n}" for n in range(5)]
    await assert_complete(engine, complete, before)


async def test_owners_that_other_code_has_kept_are_handed_over(
    engine: AsyncEngine, backend: Backend
) -> None:
    store = MetadataStore(engine)
    await store.create_tables()
    async with engine.begin() as connection:
        for statement in (
            "INSERT INTO agent_users VALUES ('alice', NULL, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
            "INSERT INTO agent_sessions (session_id, user_id) VALUES ('theirs', 'alice')",
        ):
            await connection.exec_driver_sql(statement)
    async with engine.begin() as connection:
        query = "SELECT session_id, user_id FROM agent_sessions WHERE user_id IS NOT NULL"
        owners = (await connection.exec_driver_sql(query)).all()
        await connection.exec_driver_sql("DELETE FROM agent_users")
    for session_id, user_id in map(tuple, owners):
        await store.session(session_id).transfer(user_id)
    assert await store.get_sessions_for_user("alice") == ["theirs"]
    assert await store.session("theirs", user_id="eve").history() == []
    assert await verify_projection(store) == []


async def test_the_scripts_in_the_guide_migrate_a_database_of_upstreams(
    persistent_backend: Backend, url: str, complete: dict[str, Any]
) -> None:
    async with engine_on(url) as engine:
        await upstreams(engine, persistent_backend)
        before = await select_rows(engine)
        assert script_in_guide(engine) == await MetadataStore(engine).schema_sql()
        await by_guide(engine, url)
        await assert_complete(engine, complete, before)


@origins
async def test_what_stopped_anywhere_goes_on(
    persistent_backend: Backend, complete: dict[str, Any], origin: Origin
) -> None:
    """Between any two statements, wherever the process or the operator ended."""
    cut = 0
    while True:
        async with persistent_backend.database() as url, engine_on(url) as engine:
            await origin(engine, persistent_backend)
            before = await select_rows(engine)
            statements = statements_of(await MetadataStore(engine).schema_sql())
            await run_plainly(url, statements[:cut])
            if cut % 2:
                await MetadataStore(engine).create_tables()
            else:
                rest = statements_of(await MetadataStore(engine).schema_sql())
                await run_plainly(url, rest)
            await assert_complete(engine, complete, before)
        cut += 1
        if cut > len(statements):
            return


async def test_columns_come_without_rewriting_a_table(
    server_backend: Backend, engine: AsyncEngine
) -> None:
    """However large it is: the statements themselves, with the server asked to refuse otherwise."""
    await upstreams(engine, server_backend)
    statements = statements_of(await MetadataStore(engine).schema_sql())
    added = [n for n, each in enumerate(statements) if each.startswith("ALTER TABLE")]
    file_of = "SELECT pg_relation_filenode('agent_sessions')"
    async with engine.begin() as connection:
        for n, statement in enumerate(statements[: added[-1] + 1]):
            if server_backend.name == "postgresql" and n in added:
                before = (await connection.exec_driver_sql(file_of)).scalar()
                await connection.exec_driver_sql(statement)
                assert (await connection.exec_driver_sql(file_of)).scalar() == before
            elif n in added:
                how = "INSTANT" if " ADD COLUMN " in statement else "INPLACE, LOCK=NONE"
                await connection.exec_driver_sql(f"{statement}, ALGORITHM={how}")
            else:
                await connection.exec_driver_sql(statement)


# --- A column without its key --------------------------------------------------------------------


async def test_a_column_that_exists_gets_the_key_that_it_lacks(
    server_backend: Backend, engine: AsyncEngine
) -> None:
    """Rows that break it stay as they are: refusing to open would help nobody."""
    await upstreams(engine, server_backend)
    store = MetadataStore(engine)
    (add,) = [each for each in statements_of(await store.schema_sql()) if " ADD COLUMN " in each]
    await execute(
        engine,
        [add.partition(" REFERENCES ")[0], "UPDATE agent_sessions SET user_id = 'of the app'"],
    )
    await store.create_tables()
    assert await store.schema_sql() == ""
    async with engine.begin() as connection:
        rows = await connection.exec_driver_sql("SELECT user_id FROM agent_sessions")
        assert set(rows.scalars()) == {"of the app"}
        with pytest.raises(IntegrityError):
            await connection.exec_driver_sql(
                "INSERT INTO agent_sessions (session_id, user_id) VALUES ('new', 'nobody')"
            )


# --- Side by side --------------------------------------------------------------------------------

RACER = """
from eventmeta import MetadataStore

async def main():
    async with MetadataStore.from_url(sys.argv[1]) as store:
        ready()
        await store.create_tables()

asyncio.run(main())
"""


@origins
async def test_processes_migrate_at_once(
    persistent_backend: Backend, url: str, complete: dict[str, Any], origin: Origin
) -> None:
    async with engine_on(url) as engine:
        await origin(engine, persistent_backend)
        before = await select_rows(engine)
    await asyncio.to_thread(race, RACER, *[(url,)] * 3)
    async with engine_on(url) as engine:
        await assert_complete(engine, complete, before)


async def test_engines_migrate_at_once_beside_a_live_writer(
    persistent_backend: Backend, url: str, complete: dict[str, Any]
) -> None:
    async with engine_on(url) as engine, engine_on(url) as one, engine_on(url) as two:
        await upstreams(engine, persistent_backend)
        writers = [SQLAlchemySession(f"live {n}", engine=engine) for n in range(3)]
        for writer in writers:  # one by one, for upstream's new sessions deadlock on MariaDB
            await writer.add_items(users("0"))
        migrated = asyncio.Event()

        async def write(session: SQLAlchemySession) -> int:
            count = 1
            while not migrated.is_set() or count < 20:
                with suppress(OperationalError):  # upstream's writers deadlock on MariaDB
                    await session.add_items(users(str(count)))
                    count += 1
            return count

        writing = [asyncio.create_task(write(session)) for session in writers]
        await asyncio.sleep(0.05)
        await asyncio.gather(*(MetadataStore(each).create_tables() for each in (one, two)))
        migrated.set()
        counts = await asyncio.gather(*writing)
        assert await schema_of(one) == complete
        for session, count in zip(writers, counts, strict=True):
            items = await MetadataStore(one).session(session.session_id).get_items()
            assert contents(items) == [str(n) for n in range(count)]


async def test_a_long_transaction_in_the_way_holds_nobody_up_for_long(
    server_backend: Backend, url: str, complete: dict[str, Any]
) -> None:
    async with engine_on(url) as engine, engine_on(url) as other:
        await upstreams(engine, server_backend)
        async with other.begin() as long:
            await long.exec_driver_sql("SELECT count(*) FROM agent_sessions")
            migrating = asyncio.create_task(MetadataStore(engine).create_tables())
            await asyncio.sleep(0.5)
            async with asyncio.timeout(8), other.connect() as another:
                await another.exec_driver_sql("SELECT count(*) FROM agent_sessions")
        await migrating
        assert await schema_of(engine) == complete


# --- Nothing to do -------------------------------------------------------------------------------


async def test_a_complete_database_is_only_asked_once(engine: AsyncEngine) -> None:
    """For its parts, for its columns, and for what it says of itself."""
    await MetadataStore(engine).create_tables()
    await MetadataStore(engine).close()
    store = MetadataStore(engine)
    asked: list[str] = []
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda *args: asked.append(args[2]),
    )
    await store.create_tables()
    asked = [each for each in asked if "TRANSACTION" not in each]
    assert len(asked) == len(set(asked)) == 3
    assert not any("LOCK" in each or "CREATE" in each or "BEGIN" in each for each in asked)


@pytest.mark.parametrize("rights", ["SELECT, INSERT, UPDATE, DELETE", "SELECT"])
async def test_a_complete_database_needs_no_right_to_change_it(
    server_backend: Backend, store: MetadataStore, rights: str
) -> None:
    await store.session("alpha").set_metadata({"k": 1})
    name = "u" + secrets.token_hex(4)
    database = store.engine.url.database
    made, dropped = {
        "postgresql": (
            [
                f"CREATE ROLE {name} LOGIN PASSWORD 'x'",
                f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {name}",
            ],
            [f"DROP OWNED BY {name}", f"DROP ROLE {name}"],
        ),
        "mariadb": (
            [
                f"CREATE USER {name}@localhost IDENTIFIED BY 'x'",
                f"GRANT {rights} ON {database}.* TO {name}@localhost",
            ],
            [f"DROP USER {name}@localhost"],
        ),
    }[server_backend.name]
    await execute(store.engine, made)
    try:
        restricted = store.engine.url.set(username=name, password="x")
        async with engine_on(restricted.render_as_string(hide_password=False)) as engine:
            session = MetadataSession("alpha", engine=engine, create_tables=True)
            assert await session.get_metadata() == {"k": 1}
            with pytest.raises(DatabaseFailure):
                await MetadataStore(engine, sessions_table="others").create_tables()
    finally:
        await execute(store.engine, dropped)


# --- Tables that come later ----------------------------------------------------------------------


async def test_whatever_table_is_added_later_is_created_with_its_keys(
    engine: AsyncEngine, backend: Backend
) -> None:
    await upstreams(engine, backend)
    await MetadataStore(engine).create_tables()
    await MetadataStore(engine).close()
    store = MetadataStore(engine)
    tables = store.log.database.tables
    later = Table(
        "agent_later",
        tables.metadata,
        Column("id", Integer, primary_key=True),
        Column("session_id", SessionId, nullable=False),
        Column("user_id", SessionId, ForeignKey("agent_users.user_id", ondelete="SET NULL")),
        Index("idx_agent_later_session_id", "session_id"),
    )
    tables.messages.append_column(Column("turn", Integer))
    tables.messages.append_column(Column("later_id", ForeignKey(later.c.id, ondelete="SET NULL")))
    Index("idx_agent_messages_turn", tables.messages.c.turn)
    await store.create_tables()
    assert await store.schema_sql() == ""
    parts = Statement(store.log.database.dialect.list_parts(["agent_messages", "agent_later"]), ())
    (rows,) = await store.log.database.dialect.read([parts()])
    assert {
        ("table", "agent_later", ""),
        ("index", "agent_later", "idx_agent_later_session_id"),
        ("column", "agent_messages", "turn"),
        ("column", "agent_messages", "later_id"),
        ("index", "agent_messages", "idx_agent_messages_turn"),
    } <= set(map(tuple, rows))
    assert contents(await store.session("alpha").get_items()) == [f"alpha {n}" for n in range(5)]


# --- Names, collations, and the way back ---------------------------------------------------------


async def test_tables_of_other_names_are_migrated(engine: AsyncEngine, backend: Backend) -> None:
    if backend.name == "mariadb":
        own = [re.sub("agent_(?=sessions|messages)", "Chat_", each) for each in UPSTREAM_ON_MARIADB]
        await execute(engine, own)
    names: Any = {"sessions_table": "Chat_sessions", "messages_table": "Chat_messages"}
    theirs = SQLAlchemySession("s", engine=engine, create_tables=backend.name != "mariadb", **names)
    await theirs.add_items(users("a"))
    store = MetadataStore(engine, users_table="people", **names)
    await store.create_tables()
    assert await store.schema_sql() == ""
    await store.session("s").add_items(users("b"))
    assert await theirs.get_items() == users("a", "b")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT user_id FROM people")


async def test_upstream_goes_on_with_a_migrated_database(
    engine: AsyncEngine, backend: Backend
) -> None:
    """And we with what it writes: there and back as often as one likes."""
    await upstreams(engine, backend)
    store = MetadataStore(engine)
    await store.create_tables()
    ours = store.session("alpha")
    theirs = SQLAlchemySession("alpha", engine=engine, create_tables=True)
    await ours.add_items(users("ours"))
    await theirs.add_items(users("theirs"))
    expected = [*(f"alpha {n}" for n in range(5)), "ours", "theirs"]
    assert contents(await theirs.get_items()) == contents(await ours.get_items()) == expected
    assert await theirs.pop_item() == user("theirs")
    assert await ours.pop_item() == user("ours")
    fresh = SQLAlchemySession("only theirs", engine=engine, create_tables=True)
    await fresh.add_items(users("x"))
    assert await store.session("only theirs").get_items() == users("x")
    await fresh.clear_session()
    await store.create_tables()
    assert await store.session("only theirs").get_items() == []
    assert await store.schema_sql() == ""


@pytest.mark.usefixtures("mariadb_backend")
async def test_tables_in_which_sessions_would_mix_are_refused(engine: AsyncEngine) -> None:
    await execute(
        engine,
        [each.replace("utf8mb4_nopad_bin", "utf8mb4_general_ci") for each in UPSTREAM_ON_MARIADB],
    )
    store = MetadataStore(engine)
    for call in (store.create_tables, store.schema_sql):
        with pytest.raises(UnsupportedSchema, match="CONVERT TO CHARACTER SET utf8mb4"):
            await call()
    assert set(await select_rows(engine)) == {"agent_sessions", "agent_messages"}


async def test_alembic_is_told_to_leave_every_table_out(engine: AsyncEngine) -> None:
    await MetadataStore(engine).create_tables()
    block = re.search(r"^## Alembic.*?^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)
    include_name = names["include_name"]

    async with engine.connect() as connection:
        found = await connection.run_sync(lambda each: inspect(each).get_table_names())
    assert [name for name in found if include_name(name, "table", {})] == []
    assert include_name("orders", "table", {})
    assert include_name("user_id", "column", {})
    options = {name for name in TableNames.__annotations__ if name.endswith("_table")}
    assert {getattr(TableNames(), name) for name in options} <= names["EVENTMETA"]
