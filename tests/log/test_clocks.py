"""Order and time where clocks go back, run ahead, or are in different time zones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, new_event_id, verify_projection
from eventmeta.core.clocks import MAX_AHEAD, time_of_next
from tests.support.backends import SQLITE, Backend
from tests.support.helpers import contents, user, users

pytestmark = pytest.mark.each_dialect

ZONES = ("Asia/Tokyo", "UTC", "America/New_York")
OFFSETS = ("+09:00", "+00:00", "-05:00")

Open = Callable[..., MetadataStore]
Write = Callable[[MetadataSession, Any], Awaitable[Any]]


async def in_transaction(session: MetadataSession, items: Any) -> None:
    async with session.engine.begin() as connection:
        await session.add_items(items, connection=connection)


async def by_compaction(session: MetadataSession, items: Any) -> None:
    """Put the last item and the new ones in the place of the last one."""
    snapshot = await session._get_compaction_snapshot(1)
    assert snapshot is not None
    assert await snapshot.replace_suffix(0, [*snapshot.items, *items])


WRITES: dict[str, Write] = {
    "add": lambda session, items: session.add_items(items),
    "add in steps": lambda session, items: session.add_items(items, event_id=new_event_id()),
    "add in a transaction": in_transaction,
    "compaction": by_compaction,
}
any_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Open]:
    """Makes stores of processes of their own, whose connections are in a time zone, or a clock."""
    engines: list[AsyncEngine] = []

    def make(*, structured: bool = True, **arguments: Any) -> MetadataStore:
        engines.append(create_async_engine(url, connect_args=arguments))
        return MetadataStore(engines[-1], structured_metadata=structured)

    yield make
    for engine in engines:
        await engine.dispose()


def in_zone(backend: Backend, n: int) -> dict[str, Any]:
    """What makes a connection's time zone the ``n``-th."""
    if backend.name == "postgresql":
        return {"server_settings": {"timezone": ZONES[n % 3]}}
    return {"init_command": f"SET time_zone = '{OFFSETS[n % 3]}'"}


def at_clock(seconds: int) -> dict[str, Any]:
    """What puts the clock of a connection to MariaDB forward, or back."""
    moment = int(datetime.now(UTC).timestamp()) + seconds
    return {"init_command": f"SET SESSION timestamp = {moment}"}


def upstream(store: MetadataStore, session_id: str = "s") -> SQLAlchemySession:
    return SQLAlchemySession(session_id, engine=store.engine)


async def run(engine: AsyncEngine, statement: str, **values: Any) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def date_items(store: MetadataStore, moment: datetime) -> None:
    """Let all items there are have been added at ``moment``, by the clock of then."""
    for table in ("agent_messages", "agent_conversation_messages"):
        await run(store.engine, f"UPDATE {table} SET created_at = :at", at=stored(store, moment))


def stored(store: MetadataStore, moment: datetime) -> Any:
    """``moment`` as a column of upstream's takes it."""
    naive = moment.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    return str(naive) if store.engine.dialect.name == "sqlite" else naive


async def are_read(store: MetadataStore, *expected: str, session_id: str = "s") -> None:
    """By everything that reads items in order; at last the latest is popped."""
    session = store.session(session_id)
    assert contents(await session.get_items()) == [*expected]
    assert contents(await session.get_items(2)) == [*expected[-2:]]
    assert contents(await session.get_items(turns=1)) == [*expected[-1:]]
    assert [turn.content for turn in await session.get_turns()] == [*expected]
    assert contents(await upstream(store, session_id).get_items()) == [*expected]
    assert await verify_projection(store) == []
    assert await session.pop_item() == user(expected[-1])
    assert contents(await upstream(store, session_id).get_items()) == [*expected[:-1]]


# --- Items --------------------------------------------------------------------------------------


@any_write
async def test_what_is_added_comes_last_wherever_the_clock_was(
    structured: MetadataStore, write: Write
) -> None:
    session, names = structured.session("s"), ["0"]
    await session.add_items(users("0"))
    for days in (-7_000, 1, 4_000):
        await date_items(structured, datetime.now(UTC) + timedelta(days=days))
        for _ in range(2):
            names.append(str(len(names)))
            await write(session, users(names[-1]))
    await are_read(structured, *names)


async def test_plain_items_come_last_wherever_the_clock_was(store: MetadataStore) -> None:
    """Where no structured tables are compared with the items."""
    session, names = store.session("s"), ["0"]
    await session.add_items(users("0"))
    for days in (1, 4_000):
        moment = stored(store, datetime.now(UTC) + timedelta(days=days))
        await run(store.engine, "UPDATE agent_messages SET created_at = :at", at=moment)
        for write in ("add", "add in steps", "add", "add in a transaction", "add"):
            names.append(str(len(names)))
            await WRITES[write](session, users(names[-1]))
    assert contents(await session.get_items()) == names
    assert contents(await session.get_items(3)) == names[-3:]
    assert contents(await upstream(store).get_items()) == names
    assert await session.pop_item() == user(names[-1])


async def test_sessions_of_a_batch_each_have_their_own_last_time(
    structured: MetadataStore,
) -> None:
    ahead, other = structured.session("s"), structured.session("other")
    await ahead.add_items(users("one"))
    await date_items(structured, datetime.now(UTC) + timedelta(hours=1))
    await asyncio.gather(
        ahead.add_items(users("two")), other.add_items(users("1")), ahead.add_items(users("three"))
    )
    await other.add_items(users("2"))
    await are_read(structured, "one", "two", "three")
    await are_read(structured, "1", "2", session_id="other")
    async with structured.engine.connect() as connection:
        late = "SELECT count(*) FROM agent_messages WHERE session_id = 'other' AND created_at > :at"
        soon = stored(structured, datetime.now(UTC) + timedelta(minutes=1))
        assert await connection.scalar(text(late), {"at": soon}) == 0


async def test_real_time_is_back_with_the_next_items_of_a_cleared_session(
    structured: MetadataStore,
) -> None:
    session = structured.session("s")
    await session.add_items(users("one"))
    await date_items(structured, datetime.now(UTC) + timedelta(days=4_000))
    await session.add_items(users("two"))
    await session.clear_session(keep_metadata=True)
    await session.add_items(users("three"))
    (turn,) = await session.get_turns()
    assert abs(turn.created_at - datetime.now(UTC).replace(tzinfo=None)) < timedelta(days=1)


@pytest.mark.only_on(*SQLITE)  # other databases have a type for it
async def test_a_fraction_of_a_second_is_the_later_of_two_texts(
    structured: MetadataStore,
) -> None:
    """SQLite compares times as texts, and Python's own have a fraction."""
    session = structured.session("s")
    await session.add_items(users("one"))
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=999_999)
    for table in ("agent_messages", "agent_conversation_messages"):
        await run(structured.engine, f"UPDATE {table} SET created_at = :at", at=str(now))
    await session.add_items(users("two"))
    await are_read(structured, "one", "two")


@any_write
async def test_time_zones_of_connections_do_not_matter(
    server_backend: Backend, opened: Open, structured: MetadataStore, write: Write
) -> None:
    await structured.session("s").add_items(users("0"))
    for n in range(1, 7):
        await write(opened(**in_zone(server_backend, n)).session("s"), users(str(n)))
    await are_read(structured, *map(str, range(7)))


async def test_time_zones_do_not_matter_beside_upstreams_own_writers(
    server_backend: Backend, opened: Open, store: MetadataStore
) -> None:
    """Upstream's, whose time is the default of the column, and ours take turns in each zone."""
    others = [opened(structured=False, **in_zone(server_backend, n)) for n in range(3)]
    names = [str(n) for n in range(18)]
    for n, name in enumerate(names):
        other = others[(n // 2 + n // 6) % 3]
        writer: Any = upstream(other) if n % 2 else other.session("s")
        await writer.add_items(users(name))
    assert contents(await store.session("s").get_items()) == names
    assert contents(await upstream(store).get_items()) == names


async def test_upstreams_writer_that_waited_comes_after_what_it_waited_for(
    postgresql_backend: Backend, store: MetadataStore
) -> None:
    """The default is when its transaction began."""
    ours, theirs = store.session("s"), upstream(store)
    await ours.add_items(users("one"))
    async with store.engine.connect() as connection:
        await ours.add_items(users("two"), connection=connection)
        waiting = asyncio.ensure_future(theirs.add_items(users("three")))
        await asyncio.sleep(0.3)
        await ours.set_metadata({"a": 1}, connection=connection)
        assert not waiting.done()
        await connection.commit()
    await waiting
    assert contents(await ours.get_items()) == ["one", "two", "three"]


@pytest.mark.parametrize("digits", [0, 3])
async def test_upstreams_times_of_fewer_digits_are_in_order_too(
    postgresql_backend: Backend, opened: Open, engine: AsyncEngine, digits: int
) -> None:
    await SQLAlchemySession("s", engine=engine, create_tables=True).add_items(users("0"))
    await run(engine, f"ALTER TABLE agent_messages ALTER created_at TYPE timestamp({digits})")
    store = MetadataStore(engine)
    await store.create_tables()
    elsewhere = opened(structured=False, **in_zone(postgresql_backend, 2))
    for name in ("1", "2", "3"):
        await store.session("s").add_items(users(f"ours {name}"))
        await upstream(elsewhere).add_items(users(f"theirs {name}"))
    items = [f"{whose} {n}" for n in range(1, 4) for whose in ("ours", "theirs")]
    assert contents(await store.session("s").get_items()) == ["0", *items]


async def test_upstreams_items_come_after_those_of_other_partitions(
    postgresql_backend: Backend, engine: AsyncEngine
) -> None:
    """A trigger runs for the partition, and must look at the whole table."""
    time = "timestamp NOT NULL DEFAULT current_timestamp"
    for statement in (
        f"CREATE TABLE agent_sessions (session_id varchar PRIMARY KEY, created_at {time}, "
        f"updated_at {time})",
        "CREATE TABLE agent_messages (id serial PRIMARY KEY, session_id varchar NOT NULL "
        "REFERENCES agent_sessions ON DELETE CASCADE, message_data text NOT NULL, "
        f"created_at {time}) PARTITION BY RANGE (id)",
        "CREATE TABLE early PARTITION OF agent_messages FOR VALUES FROM (1) TO (3)",
        "CREATE TABLE late PARTITION OF agent_messages FOR VALUES FROM (3) TO (1000)",
    ):
        await run(engine, statement)
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    await store.session("s").add_items(users("1", "2"))
    await date_items(store, datetime.now(UTC) + timedelta(hours=1))
    await upstream(store).add_items(users("3"))
    await store.session("s").add_items(users("4"))
    assert contents(await store.session("s").get_items()) == ["1", "2", "3", "4"]


async def test_a_time_that_is_given_stays_as_it_is(store: MetadataStore) -> None:
    """As where a database is restored, or merged into another."""
    await store.session("s").add_items(users("now"))
    item = '{"role":"user","content":"long ago"}'
    await run(
        store.engine,
        "INSERT INTO agent_messages (session_id, message_data, created_at) "
        "VALUES ('s', :item, :at)",
        item=item,
        at=stored(store, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)),
    )
    assert contents(await store.session("s").get_items()) == ["long ago", "now"]


@any_write
async def test_the_servers_clock_goes_back(
    mariadb_backend: Backend, opened: Open, structured: MetadataStore, write: Write
) -> None:
    await structured.session("s").add_items(users("0"))
    for n, seconds in enumerate((3_600, 0, 60, -3_600), start=1):
        await write(opened(**at_clock(seconds)).session("s"), users(str(n)))
    await are_read(structured, "0", "1", "2", "3", "4")


@pytest.mark.parametrize("within", [False, True])
async def test_what_was_committed_while_a_write_waited_comes_before_it(
    mariadb_backend: Backend, opened: Open, structured: MetadataStore, within: bool
) -> None:
    """Its snapshot is older, and the clock of the other one was ahead."""
    session, ahead = structured.session("s"), opened(**at_clock(3_600))
    await session.add_items(users("0"))
    async with structured.engine.begin() as late, ahead.engine.begin() as connection:
        await late.execute(text("SELECT count(*) FROM agent_messages"))
        await ahead.session("s").add_items(users("1"), connection=connection)
        held = late if within else None
        waiting = asyncio.create_task(session.add_items(users("2"), connection=held))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await connection.commit()
        await waiting
    await are_read(structured, "0", "1", "2")


# --- Sessions -----------------------------------------------------------------------------------


async def test_the_row_of_a_session_has_times_in_utc(
    server_backend: Backend, opened: Open, store: MetadataStore
) -> None:
    utc = opened(structured=False, **in_zone(server_backend, 1))
    for n in (0, 2):
        other = opened(structured=False, **in_zone(server_backend, n))
        await other.session("set").set_metadata({"a": 1})
        await other.session("added").add_items(users("a"))
        await other.session("added").add_items(users("b"), event_id=new_event_id())
        await other.create_session("ann")
        now = datetime.now(UTC).replace(tzinfo=None)
        for entry in await utc.list_sessions():
            for moment in (entry.created_at, entry.updated_at):
                assert abs(moment - now) < timedelta(minutes=5), entry


# --- The time of events -------------------------------------------------------------------------


moments = st.integers(0, 2**32).map(lambda second: datetime.fromtimestamp(second, UTC))


@given(last=st.none() | moments, now=moments, ahead=st.timedeltas(MAX_AHEAD * -2, MAX_AHEAD * 2))
def test_the_rule(last: datetime | None, now: datetime, ahead: timedelta) -> None:
    for before in (last, now + ahead):
        at = time_of_next(before, now)
        assert now <= at <= now + MAX_AHEAD
        if before is not None and before <= now + MAX_AHEAD:
            assert at == max(before, now)
        else:
            assert at == now


async def date_heads(store: MetadataStore, ahead: timedelta) -> datetime:
    """Let the last events have been recorded by a clock that was ahead."""
    moment = datetime.now(UTC) + ahead
    streams = store.log.database.tables.streams
    async with store.engine.begin() as connection:
        await connection.execute(streams.update().values(recorded_at=moment))
    return moment


async def test_time_stands_still_while_the_clock_is_a_little_behind(store: MetadataStore) -> None:
    session = store.session("s")
    await session.set_metadata({"a": 1})
    ahead = await date_heads(store, MAX_AHEAD - timedelta(seconds=1))
    await session.set_metadata({"a": 2})
    await session.add_items(users("x"))
    await session.delete_metadata(["a"])
    await session.set_metadata({"a": 3}, event_id=new_event_id())
    assert [entry.recorded_at for entry in await session.history()][1:] == [ahead] * 4


async def test_one_clock_that_was_ahead_does_not_keep_a_stream_in_the_future(
    store: MetadataStore,
) -> None:
    margin = timedelta(seconds=1)  # a server has a clock of its own
    for n, in_steps in enumerate((False, True, False, True)):
        session = store.session("s")
        await session.set_metadata({"a": -1})
        await date_heads(store, timedelta(hours=1) * 100 ** (n // 2))
        options: Any = {"event_id": new_event_id()} if in_steps else {}
        await session.set_metadata({"a": n}, **options)
        assert (await session.history())[-1].recorded_at < datetime.now(UTC) + margin
        assert await session.get_metadata(as_of=datetime.now(UTC) + margin) == {"a": n}


AHEAD = timedelta(days=7_000)


async def wrong_for_a_while(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> list[datetime]:
    """Events of a session, of which the third and fourth were recorded by a wrong clock.

    Returns:
        A moment after each of those that were recorded by a right one.
    """
    session = store.session("s")
    after: list[datetime] = []

    async def write(wrong: bool, call: Awaitable[Any]) -> None:
        await call
        if wrong:
            return
        await asyncio.sleep(0.002)
        after.append((await session.history())[-1].recorded_at)
        await asyncio.sleep(0.002)

    await write(False, session.set_metadata({"a": 1}))
    await write(False, session.set_metadata({"b": 1}))
    monkeypatch.setattr("eventmeta.log.owning.time_of_next", lambda last, now: now + AHEAD)
    monkeypatch.setattr("eventmeta.log.appender.statement_for", lambda *_: None)
    await write(True, session.delete_metadata(["a"]))
    await write(True, session.set_metadata({"a": 3}))
    monkeypatch.undo()
    await write(False, session.set_metadata({"b": 4}))
    await write(False, session.delete_metadata(["a"]))
    await write(False, session.set_metadata({"a": 6}))
    return after


PREFIXES = [
    {"a": 1},
    {"a": 1, "b": 1},
    {"a": 3, "b": 4},
    {"b": 4},
    {"a": 6, "b": 4},
]
"""What there was after each of the events that were recorded by a right clock."""


async def test_the_past_by_time_is_a_prefix_of_each_stream(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("s")
    await store.session("other").set_metadata({"a": 1})
    moments = await wrong_for_a_while(store, monkeypatch)
    for moment, expected in zip(moments, PREFIXES, strict=True):
        assert await session.get_metadata(as_of=moment) == expected
        replayed = await store.replay("metadata", until=moment)
        found = {row["key"]: row["value"] for row in replayed if row["session_id"] == "s"}
        assert found == {key: str(value) for key, value in expected.items()}
        for value in (1, 3, 6):
            ids = await store.find_sessions_by_metadata("a", value, as_of=moment)
            others = ["other"] if value == 1 else []
            assert ids == [*others, *(["s"] if expected.get("a") == value else [])]
    late = datetime.now(UTC) + 2 * AHEAD
    assert await session.get_metadata(as_of=late) == PREFIXES[-1]
    assert await session.get_metadata(as_of=moments[0] - timedelta(seconds=9)) == {}
    a, b = await session.diff(moments[0], moments[-1]), await session.diff(2, 7)
    assert a.keys() == {"a", "b"}
    assert b.keys() == {"a", "b"}


async def test_read_models_have_the_times_of_their_last_events(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a fold of the whole log has the same, though the greatest time is another."""
    moments = await wrong_for_a_while(store, monkeypatch)
    assert await verify_projection(store) == []
    rows = {row["key"]: row for row in await store.replay("metadata")}
    assert (rows["a"]["created_at"], rows["a"]["updated_at"]) == (moments[4], moments[4])
    assert (rows["b"]["created_at"], rows["b"]["updated_at"]) == (moments[1], moments[2])


async def test_users_have_the_times_of_their_last_events(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = store.user("ann")
    monkeypatch.setattr("eventmeta.log.owning.time_of_next", lambda last, now: now + AHEAD)
    await ann.set_metadata({"a": 1})
    await store.delete_user("ann")
    monkeypatch.undo()
    await ann.set_metadata({"a": 2})
    assert await verify_projection(store) == []
    ((created, updated),) = [
        (row["created_at"], row["updated_at"]) for row in await store.replay("users")
    ]
    assert created == updated < datetime.now(UTC) + timedelta(minutes=1)


# --- The order of submission --------------------------------------------------------------------


async def test_a_claiming_write_is_not_overtaken(store: MetadataStore) -> None:
    """What claims a session takes more than a plain write, which was submitted after it."""
    await store.session("old", user_id="u").set_metadata({"a": 0})
    for n in range(5):
        calls = [
            store.session("warm").set_metadata({"n": n}),
            store.session(f"new-{n}", user_id="u").set_metadata({"n": n}),
            store.session("old", user_id="u").set_metadata({"n": n}),
            store.session(f"{n}", user_id="u").add_items(users("a")),
            store.session("old", user_id="u").add_items(users("b")),
            store.session("warm").add_items(users("c")),
        ]
        events = await asyncio.gather(*calls)
        positions = [event.position for event in events]
        assert positions == sorted(positions)
