"""The Session protocol: items come back whole, in order, and as many as were asked for."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from agents.memory import SessionSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import InvalidValue, MetadataSession, MetadataStore
from tests.support.helpers import contents, user, users

LONG_AGO = datetime(2020, 1, 1)  # noqa: DTZ001 - as the column keeps it


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    session = MetadataSession("s", engine=engine, create_tables=True)
    await session.get_items()
    return session


async def run(engine: AsyncEngine, sql: str, **values: Any) -> None:
    """Execute ``sql`` with ``values``, which SQLAlchemy converts by their types."""
    async with engine.begin() as connection:
        await connection.execute(text(sql).bindparams(**values))


async def rows(engine: AsyncEngine, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(sql), values)]


async def insert_raw(engine: AsyncEngine, *texts: str) -> None:
    for data in texts:
        await run(
            engine,
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('s', :data)",
            data=data,
        )


# --- Order --------------------------------------------------------------------------------------


async def test_items_come_back_in_the_order_of_the_batches(session: MetadataSession) -> None:
    await session.add_items(users("c", "a"))
    await session.add_items(users("b"))
    await session.add_items(users(*(f"{n}" for n in range(30))))
    assert contents(await session.get_items()) == ["c", "a", "b", *(f"{n}" for n in range(30))]


async def test_items_of_the_same_moment_keep_their_order(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    await session.add_items(users("a", "b"))
    await session.add_items(users("c"))
    await run(engine, "UPDATE agent_messages SET created_at = :at", at=LONG_AGO)
    assert contents(await session.get_items()) == ["a", "b", "c"]
    assert contents(await session.get_items(2)) == ["b", "c"]
    popped = await session.pop_item()
    assert popped == user("c")


async def test_time_comes_before_the_row_id(session: MetadataSession, engine: AsyncEngine) -> None:
    """Upstream sorts so, and a database that was merged or restored may need it."""
    await session.add_items(users("now"))
    await session.add_items(users("long ago"))
    await run(
        engine,
        "UPDATE agent_messages SET created_at = :at WHERE message_data LIKE '%long ago%'",
        at=LONG_AGO,
    )
    assert contents(await session.get_items()) == ["long ago", "now"]
    assert contents(await session.get_items(1)) == ["now"]
    assert await session.pop_item() == user("now")


async def test_sessions_do_not_mix(session: MetadataSession, engine: AsyncEngine) -> None:
    other = MetadataSession("S ", engine=engine)
    await asyncio.gather(session.add_items(users("mine")), other.add_items(users("theirs")))
    assert await session.get_items() == users("mine")
    assert await other.get_items() == users("theirs")
    await session.clear_session()
    assert await other.get_items() == users("theirs")


# --- Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "abcd"), (0, ""), (1, "d"), (3, "bcd"), (4, "abcd"), (99, "abcd")],
)
async def test_limit(session: MetadataSession, limit: int | None, expected: str) -> None:
    await session.add_items(users(*"abcd"))
    assert contents(await session.get_items(limit)) == list(expected)


async def test_a_negative_limit_is_no_items(session: MetadataSession) -> None:
    """Upstream leaves it to the database: all items on SQLite, an error on the others."""
    await session.add_items(users(*"ab"))
    assert await session.get_items(-1) == []


@pytest.mark.parametrize(
    "settings", [SessionSettings(limit=2), {"limit": 2}], ids=["object", "dict"]
)
async def test_the_settings_limit_holds_when_none_is_given(
    session: MetadataSession, engine: AsyncEngine, settings: SessionSettings | dict[str, Any]
) -> None:
    await session.add_items(users(*"abcd"))
    limited = MetadataSession("s", engine=engine, session_settings=settings)
    assert contents(await limited.get_items()) == ["c", "d"]
    assert contents(await limited.get_items(3)) == ["b", "c", "d"]
    assert await limited.get_items(0) == []
    assert limited.session_settings == SessionSettings(limit=2)


async def test_settings_may_be_changed_later(session: MetadataSession) -> None:
    await session.add_items(users(*"abc"))
    assert session.session_settings == SessionSettings()
    session.session_settings = SessionSettings(limit=1)
    assert contents(await session.get_items()) == ["c"]
    session.session_settings = None
    assert contents(await session.get_items()) == ["a", "b", "c"]


# --- Batches ------------------------------------------------------------------------------------


async def test_no_items_change_nothing(session: MetadataSession, engine: AsyncEngine) -> None:
    assert await session.add_items([]) is None
    assert await rows(engine, "SELECT * FROM agent_sessions") == []
    assert await session.history() == []


async def test_a_batch_is_added_whole_or_not_at_all(session: MetadataSession) -> None:
    await session.add_items(users("before"))
    with pytest.raises(InvalidValue, match=r"items\[1\]\.content"):
        await session.add_items([user("first"), user(object())])
    assert await session.get_items() == users("before")


async def test_concurrent_batches_do_not_interleave(session: MetadataSession) -> None:
    batches = [users(*(f"{n}.{k}" for k in range(3))) for n in range(20)]
    await asyncio.gather(*(session.add_items(batch) for batch in batches))
    stored = await session.get_items()
    assert [stored[at : at + 3] for at in range(0, 60, 3)] == batches


async def test_a_big_item_and_a_big_batch(session: MetadataSession) -> None:
    big = user("é" * 1_000_000)
    many = users(*(f"{n}" for n in range(2_000)))
    await session.add_items([big])
    await session.add_items(many)
    assert await session.get_items() == [big, *many]
    assert await session.get_items(1_999) == many[1:]


# --- Corrupt rows -------------------------------------------------------------------------------


async def test_corrupt_rows_are_skipped_and_do_not_count(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    await session.add_items(users("a", "b"))
    await insert_raw(engine, "{broken", "", "not json")
    await session.add_items(users("c"))
    await insert_raw(engine, *["[1,"] * 5)
    assert contents(await session.get_items()) == ["a", "b", "c"]
    assert contents(await session.get_items(2)) == ["b", "c"]
    assert contents(await session.get_items(3)) == ["a", "b", "c"]
    assert contents(await session.get_items(9)) == ["a", "b", "c"]


async def test_pop_removes_corrupt_rows_on_the_way(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    await session.add_items(users("a"))
    await insert_raw(engine, "{broken", "")
    assert await session.pop_item() == user("a")
    assert await rows(engine, "SELECT * FROM agent_messages") == []


async def test_nothing_but_corrupt_rows(session: MetadataSession, engine: AsyncEngine) -> None:
    await session.add_items(users("a"))
    await run(engine, "UPDATE agent_messages SET message_data = '{'")
    assert await session.get_items() == []
    assert await session.get_items(1) == []
    assert await session.pop_item() is None


# --- Pop and clear ------------------------------------------------------------------------------


async def test_pop_takes_the_latest_until_there_is_none(session: MetadataSession) -> None:
    assert await session.pop_item() is None
    await session.add_items(users("a", "b"))
    assert await session.pop_item() == user("b")
    assert await session.pop_item() == user("a")
    assert await session.pop_item() is None


async def test_concurrent_pops_never_share_an_item(session: MetadataSession) -> None:
    await session.add_items(users(*"abcdef"))
    popped = await asyncio.gather(*(session.pop_item() for _ in range(8)))
    assert sorted(contents([item for item in popped if item])) == list("abcdef")
    assert popped.count(None) == 2


async def test_clear(session: MetadataSession, engine: AsyncEngine) -> None:
    assert await session.clear_session() is None
    await session.add_items(users("a", "b"))
    await session.set_metadata({"k": 1})
    assert (await session.clear_session()) is not None
    assert await session.get_items() == []
    assert await session.get_metadata() == {}
    assert await rows(engine, "SELECT * FROM agent_sessions") == []
    await session.add_items(users("c"))
    assert await session.get_items() == users("c")
    assert [entry.version for entry in await session.history()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("option", "argument", "kept"),
    [
        (False, None, False),
        (False, True, True),
        (True, None, True),
        (True, True, True),
        (True, False, False),
    ],
)
async def test_metadata_stays_when_asked_to(
    engine: AsyncEngine, option: bool, argument: bool | None, kept: bool
) -> None:
    session = MetadataSession("s", engine=engine, create_tables=True, clear_keeps_metadata=option)
    await session.add_items(users("a"))
    await session.set_metadata({"k": 1})
    await session.clear_session(keep_metadata=argument)
    assert await session.get_items() == []
    assert await session.get_metadata() == ({"k": 1} if kept else {})


async def test_what_is_added_with_a_replacement_comes_after_it(store: MetadataStore) -> None:
    session = store.session("s")
    await asyncio.gather(
        session.add_items([user("gone")]),
        session._atomic_replace_items([user("1"), user("2")]),
        session.add_items([user("3")]),
    )
    assert await session.get_items() == [user("1"), user("2"), user("3")]
