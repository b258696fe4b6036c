"""What else there is in the database when a new table takes the place of an old one."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmeta import DatabaseBusy, MetadataStore, OutcomeUnknown, RebuildFailed, verify_projection
from eventmeta.dialects import executing
from eventmeta.dialects.mysql import driver as mysql_running
from eventmeta.dialects.mysql import projector as projecting
from tests.conftest import LONG_VARIABLE
from tests.support.backends import Backend
from tests.support.processes import TIMEOUT
from tests.support.rebuilding import async_metadata, end, left_behind, select_rows, start

LIVE = "agent_sessions_metadata"
KILLS = 30 if LONG_VARIABLE in os.environ else 1


async def write(store: MetadataStore, value: object) -> None:
    await asyncio.gather(*(store.session(f"s{n}").set_metadata({"k": value}) for n in range(5)))


async def execute(store: MetadataStore, *statements: str) -> None:
    async with store.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def check(store: MetadataStore) -> None:
    assert await verify_projection(store) == []
    assert await left_behind(store.engine) == []
    assert await store.schema_sql() == ""


# --- Processes that are killed -------------------------------------------------------------------

REBUILD = """
import asyncio, sys
from eventmeta import MetadataStore

async def main(url):
    store = MetadataStore.from_url(url)
    while True:
        await store.rebuild("metadata")
        print("rebuilt", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed(
    persistent_url: str, store: MetadataStore, tmp_path: Path
) -> None:
    """The next one goes on from where it was, and the writers notice nothing."""
    done = asyncio.Event()

    async def keep_writing() -> None:
        n = 0
        while not done.is_set():
            n += 1
            await write(store, n)
            assert await store.session("s3").get_metadata() == {"k": n}

    writing = asyncio.create_task(keep_writing())
    for n in range(KILLS):
        output = tmp_path / str(n)
        process = start(REBUILD, persistent_url, output=output)
        async with asyncio.timeout(TIMEOUT):
            while not output.read_bytes():
                assert process.poll() is None
                await asyncio.sleep(0.01)
        await asyncio.sleep(random.random() / 5)
        end([process])
        assert await verify_projection(store) == []
        await execute(store, "UPDATE agent_checkpoints SET expires_at = 0")
        await store.rebuild("metadata")
        assert await verify_projection(store) == []
    done.set()
    await writing
    await check(store)


@pytest.mark.usefixtures("mariadb_backend")
async def test_a_rename_that_is_carried_out_after_its_process_has_died(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after writers were let in, for the locks of the process have ended with it."""
    await write(store, 1)
    renames: list[str] = []

    async def die(connection: Any, statements: Any) -> None:
        for statement in statements:
            if statement.startswith("RENAME"):
                renames.append(statement)
                raise ConnectionResetError
            await connection.exec_driver_sql(statement)

    monkeypatch.setattr("eventmeta.database.retry.RETRY_SECONDS", 0)
    monkeypatch.setattr("eventmeta.dialects.mysql.projector.execute", die)
    with pytest.raises(OutcomeUnknown):
        await store.rebuild("metadata")
    monkeypatch.undo()
    await write(store, 2)
    await execute(store, renames[0])
    await store.rebuild("metadata")
    assert await store.session("s0").get_metadata() == {"k": 2}
    await check(store)


@pytest.mark.usefixtures("mariadb_backend")
@pytest.mark.parametrize("lost", ["RENAME", "LOCK"])
async def test_a_connection_that_is_lost_in_the_swap(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Is no fault of the tables, and the swap is tried again."""
    await write(store, 1)
    original, killed = executing.execute, list[str]()

    async def execute_and_lose(connection: AsyncConnection, statements: Iterable[str]) -> None:
        for statement in statements:
            if statement.startswith(lost) and not killed:
                killed.append(statement)
                number = await connection.scalar(text("SELECT connection_id()"))
                await execute(store, f"KILL {number}")
            await original(connection, (statement,))

    monkeypatch.setattr(projecting, "execute", execute_and_lose)
    await store.rebuild("metadata")
    assert killed
    await check(store)


# --- What the app has made of the table ----------------------------------------------------------


async def test_a_view_of_the_app(persistent_backend: Backend, store: MetadataStore) -> None:
    """It shows the new table; where it would not, it keeps the old one in its place."""
    await write(store, 1)
    await execute(store, f"CREATE VIEW of_the_app AS SELECT session_id, value FROM {LIVE}")
    if persistent_backend.name == "postgresql":
        with pytest.raises(RebuildFailed, match=r"goes on serving.*other objects depend on it"):
            await store.rebuild("metadata")
        await write(store, 2)
        await execute(store, "DROP VIEW of_the_app")
        await store.rebuild("metadata")
        await execute(store, f"CREATE VIEW of_the_app AS SELECT session_id, value FROM {LIVE}")
    for n in range(3, 5):
        if persistent_backend.name != "postgresql":
            await store.rebuild("metadata")
        await write(store, n)
        async with store.engine.connect() as connection:
            values = await connection.scalars(text("SELECT value FROM of_the_app"))
            assert set(values) == {str(n)}
    await check(store)


@pytest.fixture
async def role(postgresql_backend: Backend, store: MetadataStore) -> AsyncIterator[AsyncEngine]:
    """An engine of someone who may only do what is granted."""
    name = f"role_{os.urandom(4).hex()}"
    await execute(store, f"CREATE ROLE {name} LOGIN", f"GRANT USAGE ON SCHEMA public TO {name}")
    engine = create_async_engine(make_url(str(store.engine.url)).set(username=name))
    yield engine
    await engine.dispose()
    await execute(
        store,
        f"REASSIGN OWNED BY {name} TO postgres",
        f"DROP OWNED BY {name}",
        f"DROP ROLE {name}",
    )


async def test_others_keep_their_rights(role: AsyncEngine, store: MetadataStore) -> None:
    await write(store, 1)
    name = role.url.username
    await execute(
        store,
        f"GRANT SELECT ON {LIVE} TO {name} WITH GRANT OPTION",
        f"GRANT UPDATE (value), REFERENCES ON {LIVE} TO {name}",
        f"GRANT INSERT ON {LIVE} TO PUBLIC",
    )
    query = text(
        "SELECT grantee, privilege_type, is_grantable, column_name "
        "FROM information_schema.column_privileges WHERE table_name = :name "
        "AND grantee <> 'postgres' ORDER BY 1, 2, 3, 4"
    )

    async def rights() -> list[tuple[object, ...]]:
        async with store.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(query, {"name": LIVE})]

    before = await rights()
    assert len(before) > 10
    for _ in range(2):
        await store.rebuild("metadata")
        assert await rights() == before
    async with role.connect() as connection:
        assert await connection.scalar(text(f"SELECT count(*) FROM {LIVE}")) == 5
    await check(store)


async def test_the_owner_keeps_the_table(role: AsyncEngine, store: MetadataStore) -> None:
    """Also when an administrator builds it anew."""
    await write(store, 1)
    await execute(store, f"ALTER TABLE {LIVE} OWNER TO {role.url.username}")
    await store.rebuild("metadata")
    async with role.begin() as connection:
        await connection.execute(text(f"UPDATE {LIVE} SET value = '666'"))
        await connection.execute(text(f"ALTER TABLE {LIVE} ADD COLUMN of_the_owner integer"))
    await store.rebuild("metadata")
    await check(store)


# --- Readers and writers in the way --------------------------------------------------------------


async def test_a_long_reader_does_not_hold_up_others_for_long(
    server_backend: Backend, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap lets others pass, and tries again until the reader has ended."""
    await write(store, 1)
    async with store.engine.connect() as reader:
        await reader.execute(text(f"SELECT count(*) FROM {LIVE}"))
        rebuilding = asyncio.create_task(store.rebuild("metadata"))
        waited = []
        for n in range(2, 7):
            began = time.monotonic()
            await write(store, n)
            assert await store.session("s0").get_metadata() == {"k": n}
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.3)
        assert not rebuilding.done()
        assert max(waited) < 4, "not until the reader has ended"
    rebuilt = await rebuilding
    assert rebuilt.swap_seconds > 0
    await check(store)


async def test_a_reader_who_writes_is_no_victim(
    server_backend: Backend, store: MetadataStore
) -> None:
    """It has read the table, which the swap waits for, and appends, for which it waits itself."""
    await write(store, 1)
    async with store.engine.connect() as connection:
        await connection.execute(text(f"SELECT count(*) FROM {LIVE}"))
        rebuilding = asyncio.create_task(store.rebuild("metadata"))
        while not await is_swapping(store, server_backend):
            await asyncio.sleep(0.002)
        await store.session("s0").set_metadata({"k": 2}, connection=connection)
        await connection.commit()
    await rebuilding
    assert await store.session("s0").get_metadata() == {"k": 2}
    await check(store)


async def is_swapping(store: MetadataStore, backend: Backend) -> bool:
    """Whether the swap waits for the reader."""
    query = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted "
        "AND mode = 'AccessExclusiveLock' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
        "mariadb": "SELECT count(*) FROM information_schema.processlist "
        "WHERE db = database() AND info LIKE 'RENAME TABLE%'",
    }[backend.name]
    async with store.engine.connect() as connection:
        return bool(await connection.scalar(text(query)))


@pytest.mark.usefixtures("mariadb_backend")
async def test_several_reads_between_which_the_table_changes(
    store: MetadataStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one connection, to which the new table is of the future."""
    await write(store, 1)
    database, engine = store.log.database, create_async_engine(url)
    execute, swapped = mysql_running._execute, list[object]()

    async def swap_after_the_first(*arguments: Any) -> Any:
        rows = await execute(*arguments)
        if not swapped:
            swapped.append("begun")  # the rebuild, too, executes
            swapped[0] = await MetadataStore(engine).rebuild("metadata")
        return rows

    monkeypatch.setattr(mysql_running, "_execute", swap_after_the_first)
    tables = (database.tables.events, database.tables.session_metadata.table)
    queries = [
        database.dialect.compile(select(func.count()).select_from(each))() for each in tables
    ]
    counts = await database.run(lambda: database.dialect.read(queries))
    assert [rows[0][0] for rows in counts] == [5, 5]
    assert swapped != ["begun"]
    await engine.dispose()


async def test_an_append_that_is_open_is_in_the_new_table(
    server_backend: Backend, store: MetadataStore
) -> None:
    """For the swap waits for its end."""
    await write(store, 1)
    async with store.engine.connect() as connection:
        await store.session("s0").set_metadata({"k": 2}, connection=connection)
        rebuilding = asyncio.create_task(store.rebuild("metadata"))
        done, _ = await asyncio.wait([rebuilding], timeout=0.5)
        assert not done
        await connection.commit()
    await rebuilding
    assert await store.session("s0").get_metadata() == {"k": 2}
    await check(store)


async def test_a_reader_who_never_ends(
    server_backend: Backend, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild gives up, and goes on another time."""
    monkeypatch.setattr("eventmeta.database.retry.RETRY_SECONDS", 0.1)
    await write(store, 1)
    async with store.engine.connect() as reader:
        await reader.execute(text(f"SELECT count(*) FROM {LIVE}"))
        with pytest.raises(DatabaseBusy):
            await store.rebuild("metadata")
        monkeypatch.undo()
        await write(store, 2)
    stages = []
    await store.rebuild("metadata", progress=lambda progress: stages.append(progress.stage))
    assert "fill" not in stages
    await check(store)


async def test_the_new_table_is_never_behind_the_old_one(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone has waited for an event, and reads it, whatever takes the place of what he reads."""
    store.register(async_metadata())
    await store.create_tables()
    await write(store, 1)
    await store.catch_up("async_metadata")
    swap = store.log.database.dialect.swap

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        await write(store, 2)
        await store.catch_up("async_metadata")
        return await swap(*arguments, **options)

    monkeypatch.setattr(store.log.database.dialect, "swap", meanwhile)
    await store.rebuild("async_metadata")
    assert await select_rows(store, "async_metadata") == await select_rows(store, LIVE)


# --- What becomes of the connections -------------------------------------------------------------


@pytest.mark.usefixtures("mariadb_backend")
@pytest.mark.parametrize("name", ["metadata", "async_metadata"])
async def test_a_connection_that_is_lost_after_the_rename(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The tables are in place then, and the rebuild goes on from there."""
    store.register(async_metadata())
    await store.create_tables()
    await write(store, 1)
    await store.catch_up()
    execute_, killed = vars(projecting)["execute"], list[int]()

    async def lost(connection: Any, statements: Any) -> None:
        statements = list(statements)
        await execute_(connection, statements)
        if not killed and any(each.startswith("RENAME") for each in statements):
            killed.append(await connection.scalar(text("SELECT connection_id()")))
            other = create_async_engine(store.engine.url)
            async with other.connect() as killer:
                await killer.execute(text(f"KILL {killed[0]}"))
            await other.dispose()
            if name != "metadata":  # whose writers are kept out
                await write(store, 2)

    monkeypatch.setattr(projecting, "execute", lost)
    built = await store.rebuild(name)
    assert killed
    assert built.projection == name
    await store.catch_up()
    assert await select_rows(store, "async_metadata") == await select_rows(store, LIVE)
    await check(store)


@pytest.mark.usefixtures("mariadb_backend")
async def test_a_pool_without_a_second_connection_keeps_nobody_out(
    persistent_url: str, store: MetadataStore
) -> None:
    await write(store, 1)
    settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 2}
    async with MetadataStore.from_url(persistent_url, engine_kwargs=settings) as small:
        rebuilding = asyncio.create_task(small.rebuild("metadata"))
        longest = 0.0
        while not rebuilding.done():
            start = time.monotonic()
            await write(store, 2)
            longest = max(longest, time.monotonic() - start)
        with pytest.raises(DatabaseBusy, match="no connection became free"):
            await rebuilding
    assert longest < 1.5
    await store.rebuild("metadata")
    await check(store)
