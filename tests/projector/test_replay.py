"""`store.replay`: a projection as it was at some point, without touching its table."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import (
    InvalidInput,
    InvalidPoint,
    InvalidProjection,
    MetadataStore,
    Position,
    ProjectionFailed,
    RecordedEvent,
)
from eventmeta.projector import replay as replay_module
from projections import AnyProjection
from tests.support.sample_projections import (
    log_of,
    noted,
    rows,
    tag,
    tags,
    tags_of,
    trail,
    trail_of,
    untag,
)

pytestmark = pytest.mark.each_dialect


@pytest.fixture
async def full(store: MetadataStore) -> MetadataStore:
    """A store with a projection of each kind, and some history."""
    store.register(tags(), inline=True)
    store.register(trail())
    await store.create_tables()
    for n in range(6):
        await store.append(f"s{n % 2}", noted(n))
        await store.append(f"s{n % 2}", untag("t0") if n == 4 else tag(f"t{n % 3}", str(n)))
        await store.session(f"s{n % 2}").set_metadata({"n": n})
    await store.catch_up()
    return store


async def tables_of(store: MetadataStore) -> set[str]:
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
        "mysql": "SELECT table_name FROM information_schema.tables WHERE table_schema = database()",
    }[store.engine.dialect.name]
    async with store.engine.connect() as connection:
        return set(await connection.scalars(text(query)))


def values(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in found)


def until(log: list[RecordedEvent], position: int) -> list[RecordedEvent]:
    return [event for event in log if event.position <= position]


# --- Points -------------------------------------------------------------------------------------


async def test_every_position(full: MetadataStore) -> None:
    log, tables = await log_of(full), await tables_of(full)
    live = await rows(full, "tags"), await rows(full, "trail")
    for end in (0, *(event.position for event in log[::3]), log[-1].position + 7):
        past = until(log, end)
        for point in (int(end), Position(end)):
            assert values(await full.replay("tags", until=point)) == tags_of(past)
        assert values(await full.replay("trail", until=end)) == trail_of(past)
    assert (await rows(full, "tags"), await rows(full, "trail")) == live
    assert await tables_of(full) == tables


async def test_a_time(full: MetadataStore) -> None:
    log = await log_of(full)
    for event in log[::4]:
        past = [each for each in log if each.recorded_at <= event.recorded_at]
        assert values(await full.replay("tags", until=event.recorded_at)) == tags_of(past)
        assert values(await full.replay("trail", until=event.recorded_at)) == trail_of(past)
    assert await full.replay("tags", until=datetime(2000, 1, 1, tzinfo=UTC)) == []


async def test_all_there_is(full: MetadataStore) -> None:
    assert values(await full.replay("tags")) == await rows(full, "tags")
    assert values(await full.replay("trail")) == await rows(full, "trail")
    metadata = await full.replay("metadata")
    assert [(row["session_id"], row["key"], row["value"]) for row in metadata] == [
        ("s0", "n", "4"),
        ("s1", "n", "5"),
    ]
    assert all(row["created_at"].tzinfo is not None for row in metadata)


async def test_one_that_is_not_registered(full: MetadataStore) -> None:
    log = await log_of(full)
    assert values(await full.replay(tags("unknown"))) == tags_of(log)
    assert values(await full.replay(trail("unknown", ["tagged"]))) == trail_of(log, ["tagged"])
    assert "unknown" not in {each.projection.name for each in full.log.registry}
    assert "unknown" not in await tables_of(full)


async def test_pages_of_a_long_log(full: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "PAGE", 2)
    assert values(await full.replay("trail")) == trail_of(await log_of(full))


async def test_beside_writers(full: MetadataStore) -> None:
    """The table of the projection in plain Python is filled in several transactions."""
    writing = asyncio.gather(*(full.append(f"w{n % 3}", noted(n)) for n in range(30)))
    found = await full.replay("trail")
    await writing
    assert {row["stream_id"] for row in found} >= {"s0", "s1"}
    assert values(await full.replay("trail")) == trail_of(await log_of(full))


BAD: list[tuple[type[Exception], Any, Any]] = [
    (InvalidPoint, "metadata", datetime(2026, 1, 1)),  # noqa: DTZ001
    (InvalidPoint, "metadata", -1),
    (InvalidPoint, "metadata", True),
    (InvalidPoint, "metadata", 1.0),
    (InvalidPoint, "metadata", "2026-01-01"),
    (InvalidPoint, "metadata", 2**63),
    (InvalidProjection, 7, None),
    (InvalidProjection, tags(version=0), None),
    (InvalidProjection, replace(trail(), tables=()), None),
]


@pytest.mark.parametrize(("error", "projection", "point"), BAD)
async def test_bad_input_is_told_before_any_io(
    error: type[Exception], projection: Any, point: Any
) -> None:
    store = MetadataStore(create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing"))
    with pytest.raises(error):
        await store.replay(projection, until=point)
    with pytest.raises(error):
        await store.replay_into("_then", projection, until=point)


# --- Nothing is left behind ---------------------------------------------------------------------


async def test_a_failure_leaves_nothing_behind(full: MetadataStore) -> None:
    tables = await tables_of(full)
    failing = trail("failing", refused=[4])
    with pytest.raises(ProjectionFailed, match="4 is refused"):
        await full.replay(failing)
    with pytest.raises(ProjectionFailed, match="4 is refused"):
        await full.replay_into("_then", failing)
    assert await tables_of(full) == tables


async def test_a_cancellation_leaves_nothing_behind(full: MetadataStore) -> None:
    tables = await tables_of(full)
    for turns in range(0, 120, 8):
        replaying = asyncio.create_task(full.replay("trail"))
        for _ in range(turns):
            await asyncio.sleep(0)
        replaying.cancel()
        await asyncio.wait([replaying])
        assert await tables_of(full) == tables, turns


# --- Scratch tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tags, trail])
async def test_scratch_tables_stay(full: MetadataStore, make: Any) -> None:
    projection: AnyProjection = make()
    name, log = projection.name, await log_of(full)
    middle, expected = log[len(log) // 2].position, tags_of if make is tags else trail_of
    assert await full.replay_into("_then", name, until=middle) == [f"{name}_then"]
    assert await full.replay_into("_now", name) == [f"{name}_now"]
    assert await rows(full, f"{name}_then") == expected(until(log, middle))
    assert await rows(full, f"{name}_now") == expected(log) == await rows(full, name)
    await full.append("s0", noted("later"))
    await full.append("s0", tag("later", "l"))
    assert await rows(full, f"{name}_now") == expected(log), "nobody keeps it up to date"
    await full.replay_into("_now", name)
    assert await rows(full, f"{name}_now") == expected(await log_of(full))


async def test_scratch_tables_are_in_no_rebuilds_way(full: MetadataStore) -> None:
    """Their indexes have names of their own, as those of a database may share one space."""
    for name in ("metadata", "tags", "trail"):
        await full.replay_into("_then", name)
        await full.rebuild(name)
        await full.replay_into("_later", name)
        await full.rebuild(name)
    log = await log_of(full)
    assert await rows(full, "tags") == tags_of(log)
    assert await full.schema_sql() == ""


@pytest.mark.parametrize(
    "suffix", ["", "-then", "é", "x" * 17, " ", "_building", "_Retired", None, "1;"]
)
async def test_a_suffix_that_cannot_be(full: MetadataStore, suffix: Any) -> None:
    with pytest.raises(InvalidInput, match="suffix"):
        await full.replay_into(suffix, "tags")


async def test_no_live_table_is_replaced(full: MetadataStore) -> None:
    full.register(trail("tags_daily"), inline=True)
    await full.create_tables()
    await full.append("s", noted())
    with pytest.raises(InvalidInput, match="suffix"):
        await full.replay_into("_Daily", "tags")
    assert len(await rows(full, "tags_daily")) == 1
