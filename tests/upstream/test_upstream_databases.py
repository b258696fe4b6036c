"""Databases that upstream's classes made open in place, and upstream goes on beside us."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from agents.extensions.memory import AdvancedSQLiteSession, AsyncSQLiteSession, SQLAlchemySession
from agents.memory import SQLiteSession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, verify_projection
from tests.support.helpers import user, users

Open = Callable[[str, Path], Any]


def open_sqlalchemy(session_id: str, path: Path) -> SQLAlchemySession:
    return SQLAlchemySession.from_url(
        session_id, url=f"sqlite+aiosqlite:///{path}", create_tables=True
    )


def open_sqlite(session_id: str, path: Path) -> SQLiteSession:
    return SQLiteSession(session_id, path)


def open_async_sqlite(session_id: str, path: Path) -> AsyncSQLiteSession:
    return AsyncSQLiteSession(session_id, path)


def open_advanced(session_id: str, path: Path) -> AdvancedSQLiteSession:
    return AdvancedSQLiteSession(session_id=session_id, db_path=path, create_tables=True)


PLAIN: dict[str, Open] = {
    "SQLAlchemySession": open_sqlalchemy,
    "SQLiteSession": open_sqlite,
    "AsyncSQLiteSession": open_async_sqlite,
}
ALL: dict[str, Open] = {**PLAIN, "AdvancedSQLiteSession": open_advanced}

plain_classes = pytest.mark.parametrize("upstream", PLAIN.values(), ids=PLAIN)
all_classes = pytest.mark.parametrize("upstream", ALL.values(), ids=ALL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@asynccontextmanager
async def opened(upstream: Open, path: Path, session_id: str = "s") -> AsyncIterator[Any]:
    session = upstream(session_id, path)
    try:
        yield session
    finally:
        if isinstance(session, SQLAlchemySession):
            await session.engine.dispose()
        elif isinstance(session, AsyncSQLiteSession):
            await session.close()
        else:
            session.close()


@asynccontextmanager
async def our(path: Path, session_id: str = "s", **options: Any) -> AsyncIterator[MetadataSession]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        yield MetadataSession(session_id, engine=engine, create_tables=True, **options)
    finally:
        await engine.dispose()


@pytest.fixture
def sql(path: Path) -> Callable[[str], list[Any]]:
    def fetch(query: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(query).fetchall()

    return fetch


# --- Opening in place ---------------------------------------------------------------------------


@all_classes
async def test_an_existing_database_opens_in_place(
    upstream: Open, path: Path, sql: Callable[[str], list[Any]]
) -> None:
    async with opened(upstream, path) as theirs, opened(upstream, path, "other") as other:
        await theirs.add_items(users("a", "b"))
        await theirs.add_items(users("c"))
        await other.add_items(users("not mine"))
    tables = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    before = sql("SELECT * FROM agent_messages ORDER BY id"), dict(sql(tables))

    async with our(path) as session:
        assert await session.get_items() == users("a", "b", "c")
        assert await session.get_metadata() == {}
        assert await session.history() == []
        after = sql("SELECT * FROM agent_messages ORDER BY id"), dict(sql(tables))
        assert after[0] == before[0]
        changed = {name for name, ddl in before[1].items() if after[1][name] != ddl}
        assert changed == {"agent_sessions"}, "it has one column more"

        await session.add_items(users("d"))
        await session.set_metadata({"title": "Chat"})
        assert await session.get_items(2) == users("c", "d")
        assert await session.pop_item() == user("d")
        assert await session.pop_item() == user("c")
        assert [entry.version for entry in await session.history()] == [1, 2, 3, 4]
        assert await session.find_sessions_by_metadata("title", "Chat") == ["s"]
        assert await session.get_metadata(as_of=1) == {}
    async with our(path, "other") as other_session:
        assert await other_session.get_items() == users("not mine")


@all_classes
async def test_a_session_of_upstreams_can_be_cleared(
    upstream: Open, path: Path, sql: Callable[[str], list[Any]]
) -> None:
    async with opened(upstream, path) as theirs:
        await theirs.add_items(users("a", "b"))
        async with our(path) as session:
            assert await session.clear_session() is not None
            assert await session.get_items() == []
        assert await theirs.get_items() == []
        assert sql("SELECT * FROM agent_sessions") == []
        await theirs.add_items(users("new"))
        assert await theirs.get_items() == users("new")


# --- Side by side -------------------------------------------------------------------------------


@plain_classes
async def test_upstream_and_ours_take_turns(upstream: Open, path: Path) -> None:
    async with opened(upstream, path) as theirs, our(path) as session:
        expected = []
        for n in range(6):
            batch = users(f"{n}", f"{n}'")
            await (theirs if n % 2 else session).add_items(batch)
            expected += batch
            assert await theirs.get_items() == await session.get_items() == expected
        assert await theirs.get_items(3) == await session.get_items(3) == expected[-3:]
        assert await theirs.pop_item() == expected.pop()
        assert await session.pop_item() == expected.pop()
        assert await theirs.pop_item() == expected.pop()
        assert await theirs.get_items() == await session.get_items() == expected
        await session.clear_session()
        assert await theirs.get_items() == []
        assert await theirs.pop_item() is None


@plain_classes
async def test_upstream_and_ours_write_at_once(upstream: Open, path: Path) -> None:
    async with opened(upstream, path) as theirs, our(path) as session:
        await theirs.get_items()
        writers = [theirs if n % 2 else session for n in range(20)]
        await asyncio.gather(*(w.add_items(users(f"{n}")) for n, w in enumerate(writers)))
        items = await session.get_items()
        assert sorted(items, key=repr) == sorted(users(*map(str, range(20))), key=repr)
        assert items == await theirs.get_items()
        popped = await asyncio.gather(*(w.pop_item() for w in writers))
        assert sorted(popped, key=repr) == sorted(items, key=repr)


@plain_classes
async def test_what_upstream_clears_leaves_our_metadata_and_history(
    upstream: Open, path: Path
) -> None:
    """Upstream knows nothing of them; the metadata stays until we clear it."""
    async with opened(upstream, path) as theirs, our(path) as session:
        await session.add_items(users("a"))
        await session.set_metadata({"k": 1})
        await theirs.clear_session()
        assert await session.get_items() == []
        assert await session.get_metadata() == {"k": 1}
        await session.add_items(users("b"))
        assert await theirs.get_items() == users("b")
        assert [entry.version for entry in await session.history()] == [1, 2, 3]
        assert await verify_projection(MetadataStore(session.engine)) == []


async def test_sqlalchemy_session_takes_turns_on_every_database(engine: AsyncEngine) -> None:
    """With one engine for both; on MySQL upstream needs the tables to be ours."""
    session = MetadataSession("s", engine=engine, create_tables=True)
    theirs = SQLAlchemySession("s", engine=engine)
    expected = []
    for n in range(6):
        batch = users(f"{n}", f"{n}'")
        await (session if n % 2 == 0 else theirs).add_items(batch)
        expected += batch
        assert await theirs.get_items() == await session.get_items() == expected
    assert await theirs.pop_item() == expected.pop()
    assert await session.pop_item() == expected.pop()
    await asyncio.gather(
        *((session if n % 2 else theirs).add_items(users(f"+{n}")) for n in range(10))
    )
    items = await session.get_items()
    assert items[:10] == expected
    assert len(items) == 20
    assert await theirs.get_items() == items
    await session.set_metadata({"k": 1})
    await theirs.clear_session()
    assert await session.get_items() == []
    assert await session.get_metadata() == {"k": 1}
    assert await verify_projection(MetadataStore(engine)) == []


NAMES = {
    "default": {},
    "own": {"sessions_table": "ChatSessions", "messages_table": "chat_messages"},
}


@pytest.mark.usefixtures("postgresql_backend")
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
async def test_a_postgresql_database_of_upstreams_opens_in_place(
    engine: AsyncEngine, names: dict[str, Any]
) -> None:
    theirs = SQLAlchemySession("s", engine=engine, create_tables=True, **names)
    other = SQLAlchemySession("other", engine=engine, create_tables=True, **names)
    await theirs.add_items(users("a", "b"))
    await other.add_items(users("not mine"))

    session = MetadataSession("s", engine=engine, create_tables=True, **names)
    assert await session.get_items() == users("a", "b")
    assert (await session.get_metadata(), await session.history()) == ({}, [])
    await session.add_items(users("c", "d"))
    await session.set_metadata({"title": "Chat"})
    assert await theirs.get_items() == await session.get_items() == users("a", "b", "c", "d")
    assert await session.pop_item() == user("d")
    assert await theirs.pop_item() == user("c")
    await theirs.add_items(users("e"))
    assert await session.get_items() == users("a", "b", "e")
    assert [entry.version for entry in await session.history()] == [1, 2, 3]
    await session.clear_session()
    assert await theirs.get_items() == []
    assert await other.get_items() == users("not mine")
    assert await verify_projection(MetadataStore(engine, **names)) == []


# --- AdvancedSQLiteSession keeps a second book --------------------------------------------------
# It lists only messages that have a row in its table `message_structure`, and every removal of its
# own deletes the session's messages that have none, whoever added them.

others = pytest.mark.parametrize("other", ["ours", *PLAIN])


@asynccontextmanager
async def beside(other: str, path: Path) -> AsyncIterator[Any]:
    async with our(path) if other == "ours" else opened(PLAIN[other], path) as session:
        yield session


@others
async def test_advanced_does_not_see_what_others_add(other: str, path: Path) -> None:
    async with opened(open_advanced, path) as advanced:
        await advanced.add_items(users("a"))
        async with beside(other, path) as session:
            await session.add_items(users("b"))
            await advanced.add_items(users("c"))
            assert await session.get_items() == users("a", "b", "c")
            assert await advanced.get_items() == users("a", "c")


@others
async def test_advanced_deletes_what_others_added_when_it_pops(other: str, path: Path) -> None:
    async with opened(open_advanced, path) as advanced:
        await advanced.add_items(users("a", "b"))
        async with beside(other, path) as session:
            await session.add_items(users("c"))
            assert await advanced.pop_item() == user("b")
            assert await session.get_items() == users("a")


@others
async def test_advanced_deletes_what_others_added_with_a_branch(other: str, path: Path) -> None:
    async with opened(open_advanced, path) as advanced:
        await advanced.add_items(users("a", "b"))
        async with beside(other, path) as session:
            await session.add_items(users("c"))
            await advanced.create_branch_from_turn(2, "draft")
            assert await session.get_items() == users("a", "b", "c")
            await advanced.switch_to_branch("main")
            await advanced.delete_branch("draft")
            assert await session.get_items() == users("a", "b")


@others
async def test_what_others_remove_is_gone_for_advanced_too(
    other: str, path: Path, sql: Callable[[str], list[Any]]
) -> None:
    """In the second book a row is left behind, as foreign keys are for the app to turn on."""
    async with opened(open_advanced, path) as advanced:
        await advanced.add_items(users("a", "b"))
        async with beside(other, path) as session:
            assert await session.pop_item() == user("b")
            assert await advanced.get_items() == users("a")
            dangling = sql(
                "SELECT * FROM message_structure WHERE message_id NOT IN"
                " (SELECT id FROM agent_messages)"
            )
            assert len(dangling) == 1


async def test_metadata_and_history_survive_what_advanced_deletes(path: Path) -> None:
    async with opened(open_advanced, path) as advanced, our(path) as session:
        await advanced.add_items(users("a", "b"))
        await session.set_metadata({"k": 1})
        await session.add_items(users("c"))
        await advanced.pop_item()
        await advanced.clear_session()
        assert await session.get_metadata() == {"k": 1}
        assert [entry.version for entry in await session.history()] == [1, 2]
