"""The engine is the app's: what it says of schemas, transactions and pools holds for the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import (
    DatabaseFailure,
    DatabaseRefused,
    InvalidInput,
    MetadataSession,
    MetadataStore,
    UnsupportedEngine,
    new_event_id,
)
from tests.support.backends import SQLITE, Backend
from tests.support.helpers import contents, refuse, user, versions
from tests.support.using import begin_by_events, use

# --- Schemas -------------------------------------------------------------------------------------

SCHEMAS = ("tenant_a", "Tenant's %b")


@pytest.fixture
async def schemas(
    server_backend: Backend, url: str, engine: AsyncEngine
) -> AsyncIterator[list[str]]:
    """Two schemas; on MySQL that is another word for databases, so they have names of their own."""
    async with AsyncExitStack() as stack:
        if server_backend.name == "mariadb":
            names = [
                (await stack.enter_async_context(server_backend.database())).split("?")[0]
                for _ in SCHEMAS
            ]
            yield [name.rpartition("/")[2] for name in names]
            return
        async with engine.begin() as connection:
            for name in SCHEMAS:
                await connection.exec_driver_sql(f'CREATE SCHEMA "{name}"')
        yield list(SCHEMAS)


def tenant(engine: AsyncEngine, schema: str) -> AsyncEngine:
    return engine.execution_options(schema_translate_map={None: schema})


async def tables(engine: AsyncEngine, schema: str | None) -> set[str]:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: set(inspect(sync).get_table_names(schema)))


@pytest.mark.parametrize("structured", [False, True])
async def test_tenants_are_apart(engine: AsyncEngine, schemas: list[str], structured: bool) -> None:
    stores = [
        MetadataStore(tenant(engine, schema), structured_metadata=structured) for schema in schemas
    ]
    for store, schema in zip(stores, schemas, strict=True):
        await use(store, f"secret of {schema}")
    assert await tables(engine, None) == set()
    assert {"agent_events", "closed_sessions"} <= await tables(engine, schemas[0])
    for n, store in enumerate(stores):
        await store.session(f"only {n}").add_items([user(str(n))])
    for n, store in enumerate(stores):
        assert contents(await store.session(f"only {n}").get_items()) == [str(n)]
        assert await store.session(f"only {1 - n}").get_items() == []


async def test_tenants_write_at_the_same_time(engine: AsyncEngine, schemas: list[str]) -> None:
    plain = MetadataStore(engine)
    stores = [plain, *(MetadataStore(tenant(engine, schema)) for schema in schemas)]
    for store in stores:
        await store.create_tables()
    await asyncio.gather(
        *(
            store.session(f"s{i}").set_metadata({"tenant": n})
            for i in range(20)
            for n, store in enumerate(stores)
        )
    )
    for n, store in enumerate(stores):
        found = await asyncio.gather(*(store.session(f"s{i}").get_metadata() for i in range(20)))
        assert found == [{"tenant": n}] * 20
        assert len([event async for event in store.events()]) == 20


async def test_a_connection_of_another_tenant_is_refused(
    engine: AsyncEngine, schemas: list[str]
) -> None:
    ours, others = (tenant(engine, schema) for schema in schemas)
    session = MetadataStore(ours).session("s")
    await MetadataStore(ours).create_tables()
    async with others.begin() as connection:
        with pytest.raises(InvalidInput, match="schema_translate_map"):
            await session.set_metadata({"k": 1}, connection=connection)
    async with AsyncSession(engine) as orm:
        with pytest.raises(InvalidInput, match="schema_translate_map"):
            await session.set_metadata({"k": 1}, connection=orm)
    async with AsyncSession(ours) as orm:
        await session.set_metadata({"k": 1}, connection=orm)
        await orm.commit()
    assert await session.get_metadata() == {"k": 1}


async def test_an_option_that_is_changed_is_for_stores_opened_later(
    engine: AsyncEngine, schemas: list[str]
) -> None:
    first = MetadataStore(tenant(engine, schemas[0]))
    await first.create_tables()
    session = first.session("s")
    await session.set_metadata({"k": 1})
    first.engine.sync_engine.update_execution_options(schema_translate_map={None: schemas[1]})
    second = MetadataStore(first.engine)
    await use(second)
    assert await second.session("s").get_metadata() == {}
    for call in (session.get_metadata, lambda: session.set_metadata({"k": 2})):
        with pytest.raises(UnsupportedEngine, match="was changed"):
            await call()
    with pytest.raises(UnsupportedEngine, match="was changed"):
        first.session("s")
    again = MetadataStore(tenant(engine, schemas[0]))
    assert await again.session("s").get_metadata() == {"k": 1}


@pytest.mark.usefixtures("sqlite_file_backend")
def test_sqlite_refuses_another_schema(url: str) -> None:
    engine = create_async_engine(url)
    with pytest.raises(UnsupportedEngine, match="a file with an engine of its own"):
        MetadataSession("s", engine=tenant(engine, "attached"))


@pytest.mark.parametrize("translation", [{None: None}, {"other": None}, {"other": "one"}, {}])
async def test_other_translations_do_not_matter(engine: AsyncEngine, translation: Any) -> None:
    await use(MetadataStore(engine.execution_options(schema_translate_map=translation)))
    assert len(await MetadataStore(engine).session("one").history()) == 8
    assert {"agent_events", "closed_sessions"} <= await tables(engine, None)


# --- Other options -------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "autocommit": {"isolation_level": "AUTOCOMMIT"},
    "serializable": {"isolation_level": "SERIALIZABLE"},
    "uncommitted": {"isolation_level": "READ UNCOMMITTED"},
    "logging": {"logging_token": "store"},
    "streaming": {"yield_per": 10, "stream_results": True},
    "caching": {"compiled_cache": None},
    "parameters": {"no_parameters": True},
    "own": {"tenant": object()},
}


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in OPTIONS if name != "uncommitted"),
        # PostgreSQL has no such level.
        pytest.param("uncommitted", marks=pytest.mark.only_on(*SQLITE, "mariadb")),
    ],
)
async def test_options_of_the_engine(engine: AsyncEngine, name: str) -> None:
    """On a pool that has served another store before."""
    plain = MetadataStore(engine)
    await plain.create_tables()
    await plain.session("before").set_metadata({"k": 1})
    await use(MetadataStore(engine.execution_options(**OPTIONS[name])))
    assert await plain.session("before").get_metadata() == {"k": 1}


ENGINES: dict[str, dict[str, Any]] = {
    "autocommit": {"isolation_level": "AUTOCOMMIT"},
    "serializable": {"isolation_level": "SERIALIZABLE"},
    "null pool": {"poolclass": NullPool},
    "one": {"pool_size": 1, "max_overflow": 1},
    "ping": {"pool_pre_ping": True},
    "no reset": {"pool_reset_on_return": None},
    "commit": {"pool_reset_on_return": "commit"},
    "streaming": {"execution_options": {"yield_per": 10}},
    "echo": {"echo": True},
}


@pytest.mark.parametrize("name", ENGINES)
async def test_kinds_of_engines(
    persistent_backend: Backend, url: str, engine: AsyncEngine, name: str
) -> None:
    """What they acknowledge is committed, and of what is refused nothing is left."""
    kind = create_async_engine(url, **ENGINES[name])
    store = MetadataStore(kind, structured_metadata=True)
    await use(store)
    session, seen = store.session("s"), MetadataStore(engine).session("s")
    await session.set_metadata({"k": 1})
    assert await seen.get_metadata() == {"k": 1}
    await refuse(engine, persistent_backend, "items_added")
    with pytest.raises(DatabaseRefused):
        await session.add_items([user("x")], event_id=new_event_id())
    assert await seen.get_items() == []
    assert await versions(seen) == [1]
    await kind.dispose()


@pytest.mark.usefixtures("postgresql_backend")
async def test_an_engine_for_reading_does_not_write(engine: AsyncEngine) -> None:
    store = MetadataStore(engine)
    await store.create_tables()
    await store.session("s").set_metadata({"k": 1})
    reading = MetadataStore(engine.execution_options(postgresql_readonly=True))
    assert await reading.session("s").get_metadata() == {"k": 1}
    with pytest.raises(DatabaseFailure, match="read-only"):
        await reading.session("s").set_metadata({"k": 2})
    assert await store.session("s").get_metadata() == {"k": 1}


async def test_the_recipe_that_rolls_back_tests(persistent_url: str) -> None:
    """SQLAlchemy's own: all that a test does joins a transaction that never commits."""
    engine = create_async_engine(persistent_url)
    if persistent_url.startswith("sqlite"):
        begin_by_events(engine)
    store = MetadataStore(engine)
    await store.create_tables()
    async with engine.connect() as connection:
        outer = await connection.begin()
        orm = AsyncSession(connection, join_transaction_mode="create_savepoint")
        session = store.session("s")
        await session.set_metadata({"k": 1}, connection=orm)
        await session.add_items([user("x")], connection=connection)
        await orm.commit()
        await session.set_metadata({"k": 2}, connection=orm)
        await orm.rollback()
        await session.set_metadata({"other": 3}, connection=orm)
        await orm.commit()
        found = await connection.execute(
            text("SELECT version FROM agent_events WHERE stream_id = 's' ORDER BY version")
        )
        assert found.scalars().all() == [1, 2, 3]
        await orm.close()
        await outer.rollback()
    assert await store.session("s").get_metadata() == {}
    assert await store.session("s").history() == []
    await engine.dispose()


async def test_within_a_connection_that_commits_by_itself(persistent_url: str) -> None:
    engine = create_async_engine(persistent_url, isolation_level="AUTOCOMMIT")
    store = MetadataStore(engine)
    await store.create_tables()
    async with engine.begin() as connection:
        await store.session("s").set_metadata({"k": 1}, connection=connection)
    assert await store.session("s").get_metadata() == {"k": 1}
    await engine.dispose()
