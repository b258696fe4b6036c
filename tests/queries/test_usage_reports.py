"""Usage summed up by the database: by user, agent, model, day and session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    GroupedUsage,
    InvalidIdentifier,
    InvalidInput,
    InvalidPoint,
    MetadataStore,
    UsageTotals,
)
from tests.support.backends import Backend

pytestmark = pytest.mark.each_dialect

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
BEFORE_TIME = datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))


@pytest.fixture
async def store(url: str, backend: Backend) -> AsyncIterator[MetadataStore]:
    """Of a server that is far from UTC."""
    if backend.name == "postgresql":
        server = create_async_engine(url)
        async with server.begin() as connection:
            name = server.url.database
            await connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        await server.dispose()
    engine = create_async_engine(url)
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    yield store
    await engine.dispose()


async def fill(store: MetadataStore, *used: dict[str, Any]) -> None:
    """Rows of one request each, with 1, 2, 4 … input tokens."""
    projection = store.log.database.tables.usage
    assert projection is not None
    async with store.engine.begin() as connection:
        for n, row in enumerate(used):
            values = {
                "id": n + 1,
                "session_id": "alpha",
                "run_id": "r",
                "requests": 1,
                "input_tokens": 2**n,
                "output_tokens": 100,
                "total_tokens": 100 + 2**n,
                "input_tokens_details": '{"cache_write_tokens":1,"cached_tokens":10}',
                "output_tokens_details": '{"reasoning_tokens":50}',
                "created_at": NOON,
            }
            await connection.execute(insert(projection.table).values({**values, **row}))


async def own(engine: AsyncEngine, store: MetadataStore, session_id: str, user_id: str) -> None:
    session = store.session(session_id)
    await session.set_metadata({"k": 1})
    streams = store.log.database.tables.streams
    async with engine.begin() as connection:
        change = update(streams).where(streams.c.stream_id == session_id)
        await connection.execute(change.values(user_id=user_id))


async def sums(store: MetadataStore, *arguments: Any, **options: Any) -> dict[str | None, int]:
    groups = await store.get_usage(*arguments, **options)
    assert [group.key for group in groups] == sorted(
        (group.key for group in groups), key=lambda key: (key is not None, key or "")
    )
    return {group.key: group.input_tokens for group in groups}


async def test_the_whole(store: MetadataStore) -> None:
    assert await store.get_usage() == [GroupedUsage()]
    assert await store.get_usage("agent") == []
    await fill(store, {}, {"session_id": "beta"})
    assert await store.get_usage() == [
        GroupedUsage(
            requests=2,
            input_tokens=3,
            output_tokens=200,
            total_tokens=203,
            cached_tokens=20,
            cache_write_tokens=2,
            reasoning_tokens=100,
        )
    ]
    assert await store.session("beta").get_usage() == UsageTotals(1, 2, 100, 102, 10, 1, 50)
    assert await store.session("gamma").get_usage() == UsageTotals()


@pytest.mark.parametrize("column", ["agent", "model", "session"])
async def test_by_a_column(store: MetadataStore, column: Any) -> None:
    name = "session_id" if column == "session" else column
    missing = "alpha" if column == "session" else None
    await fill(store, {}, {name: "B"}, {name: "b"}, {name: "B"}, {name: "é"})
    assert await sums(store, column) == {missing: 1, "B": 10, "b": 4, "é": 16}


async def test_by_user(store: MetadataStore) -> None:
    """The user whom the handle was bound to; else the owner, but not one who was deleted."""
    await own(store.engine, store, "alpha", "alice")
    await own(store.engine, store, "beta", "")
    await fill(
        store,
        {},
        {"user_id": "bob"},
        {"session_id": "beta"},
        {"session_id": "never"},
        {"session_id": "beta", "user_id": "alice"},
    )
    assert await sums(store, "user") == {None: 4 + 8, "alice": 1 + 16, "bob": 2}


async def test_by_day_in_utc(store: MetadataStore) -> None:
    tokyo = timezone(timedelta(hours=9))
    await fill(
        store,
        {"created_at": datetime(2026, 1, 31, 0, 0, tzinfo=UTC)},
        {"created_at": datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)},
        {"created_at": datetime(2026, 2, 1, 8, 59, tzinfo=tokyo)},
        {"created_at": datetime(2026, 2, 1, 9, 0, tzinfo=tokyo)},
    )
    assert await sums(store, "day") == {"2026-01-31": 7, "2026-02-01": 8}


async def test_between_two_times(store: MetadataStore) -> None:
    hours = [{"created_at": NOON + timedelta(hours=n)} for n in range(4)]
    await fill(store, *hours)
    hour = timedelta(hours=1)
    assert await sums(store, since=NOON + hour) == {None: 2 + 4 + 8}
    assert await sums(store, until=NOON + hour) == {None: 1}
    assert await sums(store, "agent", since=NOON + hour, until=NOON + 3 * hour) == {None: 6}
    berlin = timezone(hour)
    assert await sums(store, since=(NOON + 2 * hour).astimezone(berlin)) == {None: 12}


@pytest.mark.parametrize("group", ["users", "", 1, ["user"]])
async def test_a_group_that_is_not_known(store: MetadataStore, group: Any) -> None:
    with pytest.raises(InvalidInput, match="give one of 'user', 'agent'"):
        await store.get_usage(group)


@pytest.mark.parametrize("option", ["since", "until"])
@pytest.mark.parametrize("time", [NOON.replace(tzinfo=None), "2026-01-31", 0, BEFORE_TIME], ids=str)
async def test_a_time_that_is_no_moment(store: MetadataStore, option: str, time: Any) -> None:
    options: Any = {option: time}
    with pytest.raises(InvalidPoint, match=r"aware datetime|out of the range"):
        await store.get_usage(**options)


@pytest.mark.parametrize("run_id", ["", "a\0b", 7])
async def test_a_run_id_that_is_none(store: MetadataStore, run_id: Any) -> None:
    with pytest.raises(InvalidIdentifier, match="run id"):
        await store.session("alpha").get_usage(run_id=run_id)


@pytest.mark.parametrize("turn", [-1, "1", True, 1.0])
async def test_a_turn_that_is_no_number(store: MetadataStore, turn: Any) -> None:
    with pytest.raises(InvalidInput, match="turn"):
        await store.session("alpha").get_usage(turn=turn)
    with pytest.raises(InvalidInput, match="turn"):
        await store.session("alpha").get_turn_usage(turn)


@pytest.mark.parametrize("turn", [2**31, 2**63 - 1])
async def test_a_turn_that_is_not_there(store: MetadataStore, turn: int) -> None:
    assert await store.session("alpha").get_usage(turn=turn) == UsageTotals()
    assert await store.session("alpha").get_turn_usage(turn) == {}
