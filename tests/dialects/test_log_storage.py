"""The log as the database holds it: immutable, readable, and reached through its indexes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession, MetadataStore, NewEvent, verify_projection
from eventmeta.dialects.mysql import driver as mysql_running
from eventmeta.dialects.statement import Query
from tests.support.backends import Backend

COLUMNS = (
    "position, stream_type, stream_id, version, event_id, type, data, actor, context, recorded_at"
)


async def rows(engine: AsyncEngine, query: str) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


# --- Immutability -------------------------------------------------------------------------------

FORGED = "'session', 'alpha', 2, '00000000-0000-7000-8000-000000000000', 'forged', '{}'"
INTO = "INTO agent_events (position, stream_type, stream_id, version, event_id, type, data"
AT = "recorded_at) VALUES"
COPY = f"SELECT {COLUMNS} FROM agent_events"

ATTACKS = {
    "update": "UPDATE agent_events SET data = '{}'",
    "update one": "UPDATE agent_events SET actor = 'eve' WHERE version = 1",
    "renumber": "UPDATE agent_events SET position = position + 100",
    "delete": "DELETE FROM agent_events",
    "delete one": "DELETE FROM agent_events WHERE version = 2",
    "insert again": f"INSERT INTO agent_events ({COLUMNS}) {COPY}",
    "take a version": f"INSERT {INTO}, {AT} (99, {FORGED}, '2026-01-01')",
}
SQLITE = {
    "truncate": "DELETE FROM agent_events WHERE 1",
    "update or replace": "UPDATE OR REPLACE agent_events SET version = 1",
    "update or ignore": "UPDATE OR IGNORE agent_events SET data = '{}'",
    "replace all": f"INSERT OR REPLACE INTO agent_events ({COLUMNS}) {COPY}",
    "replace a version": f"INSERT OR REPLACE {INTO}, {AT} (99, {FORGED}, '2026-01-01')",
    "replace a version unnumbered": (
        "INSERT OR REPLACE INTO agent_events (stream_type, stream_id, version, event_id, type, "
        f"data, recorded_at) VALUES ({FORGED}, '2026-01-01')"
    ),
    "replace a position": (
        f"REPLACE {INTO}, {AT} (2, 'session', 'x', 1, 'x', 'forged', '{{}}', '2026-01-01')"
    ),
    "replace a position given as text": (
        f"REPLACE {INTO}, {AT} ('2', 'session', 'x', 1, 'x', 'forged', '{{}}', '2026-01-01')"
    ),
    "replace a position given as float": (
        f"REPLACE {INTO}, {AT} (2.0, 'session', 'x', 1, 'x', 'forged', '{{}}', '2026-01-01')"
    ),
    "replace a row id": (
        "INSERT OR REPLACE INTO agent_events (rowid, stream_type, stream_id, version, event_id, "
        "type, data, recorded_at) VALUES (2, 'session', 'x', 1, 'x', 'forged', '{}', '2026-01-01')"
    ),
    "replace an event id": (
        f"REPLACE {INTO}, {AT} (99, 'session', 'alpha', 99, "
        "(SELECT event_id FROM agent_events WHERE version = 1), 'forged', '{}', '2026-01-01')"
    ),
    "insert or update": (
        f"INSERT {INTO}, {AT} (99, {FORGED}, '2026-01-01') "
        "ON CONFLICT (stream_id, stream_type, version) DO UPDATE SET data = 'forged'"
    ),
    "update from": "UPDATE agent_events SET data = '{}' FROM agent_streams AS s WHERE true",
}
POSTGRESQL = {
    "truncate": "TRUNCATE agent_events",
    "truncate and more": "TRUNCATE agent_events, agent_messages RESTART IDENTITY CASCADE",
    "insert or update": (
        f"INSERT {INTO}, {AT} (99, {FORGED}, '2026-01-01') "
        "ON CONFLICT (stream_id, stream_type, version) DO UPDATE SET data = 'forged'"
    ),
    "merge": (
        "MERGE INTO agent_events AS log USING agent_streams AS s ON s.stream_id = log.stream_id "
        "WHEN MATCHED THEN DELETE"
    ),
    "delete in a part": "WITH gone AS (DELETE FROM agent_events RETURNING 1) SELECT * FROM gone",
    "update from": "UPDATE agent_events SET data = '{}' FROM agent_streams AS s WHERE true",
}
MARIADB = {
    "truncate": "TRUNCATE TABLE agent_events",
    "replace all": f"REPLACE INTO agent_events ({COLUMNS}) {COPY}",
    "replace a version": f"REPLACE {INTO}, {AT} (99, {FORGED}, '2026-01-01')",
    "replace an event id": (
        f"REPLACE {INTO}, {AT} (99, 'session', 'alpha', 99, "
        "(SELECT event_id FROM agent_events AS log WHERE version = 1), 'forged', '{}', "
        "'2026-01-01')"
    ),
    "insert or update": (
        f"INSERT {INTO}, {AT} (99, {FORGED}, '2026-01-01') ON DUPLICATE KEY UPDATE data = 'forged'"
    ),
    "update ignoring errors": "UPDATE IGNORE agent_events SET data = '{}'",
    "delete ignoring errors": "DELETE IGNORE FROM agent_events",
    "update of a join": (
        "UPDATE agent_events AS log JOIN agent_streams AS s USING (stream_id) SET log.data = '{}'"
    ),
    "delete of a join": (
        "DELETE log FROM agent_events AS log JOIN agent_streams AS s USING (stream_id)"
    ),
}
OF_BACKEND = {
    "sqlite-file": SQLITE,
    "sqlite-memory": SQLITE,
    "postgresql": POSTGRESQL,
    "mariadb": MARIADB,
}


async def test_the_database_refuses_every_change_of_the_log(
    backend: Backend, store: MetadataStore
) -> None:
    for value in range(3):
        await store.session("alpha").set_metadata({"a": value}, actor="bob")
    before = await rows(store.engine, f"{COPY} ORDER BY position")
    attacks = ATTACKS | OF_BACKEND[backend.name]
    succeeded = []
    for name, attack in attacks.items():
        async with store.engine.connect() as connection:
            try:
                await connection.exec_driver_sql(attack)
                await connection.commit()
                succeeded.append(name)
            except DBAPIError:
                await connection.rollback()
        assert await rows(store.engine, f"{COPY} ORDER BY position") == before, name
    assert succeeded == []
    await store.session("alpha").set_metadata({"a": "still writable"})
    assert await verify_projection(store) == []


async def test_the_refusal_says_why(store: MetadataStore) -> None:
    await store.append("alpha", NewEvent("noted"))
    for attack in (ATTACKS["update"], ATTACKS["delete"]):
        async with store.engine.connect() as connection:
            with pytest.raises(DBAPIError, match="agent_events is append-only"):
                await connection.exec_driver_sql(attack)


# --- The view -----------------------------------------------------------------------------------


async def test_the_history_can_be_read_in_plain_sql(store: MetadataStore) -> None:
    session = store.session("alpha")
    await session.set_metadata({"title": "My chat", "n": 1.0}, actor="bob")
    await store.append("alpha", NewEvent("noted", {"changes": [["title", "forged"]]}))
    await session.add_items([{"role": "user", "content": "x"}])
    await session.delete_metadata(["n"], actor="eve")
    await store.session("beta").set_metadata({"title": None})
    await session.clear_session()
    columns = "stream_id, version, changed.key, value, actor"
    query = f"SELECT {columns} FROM agent_metadata_changes AS changed ORDER BY position, 3"
    assert await rows(store.engine, query) == [
        ("alpha", 1, "n", "1.0", "bob"),
        ("alpha", 1, "title", '"My chat"', "bob"),
        ("alpha", 4, "n", None, "eve"),
        ("beta", 1, "title", "null", None),
        ("alpha", 5, "title", None, None),
    ]
    times = await rows(store.engine, "SELECT recorded_at FROM agent_metadata_changes")
    assert all(time is not None for (time,) in times)


# --- Statements ---------------------------------------------------------------------------------

Sent = list[tuple[str, Any]]
"""The text and the parameters of statements, in their order."""
Watch = Callable[[Awaitable[Any]], Awaitable[Sent]]


async def watching(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What a call sends, as the database or its driver sees it; begin and commit left out."""
    sent: Sent = []
    watched: set[Any] = set()
    engine = store.engine.sync_engine

    def note(sql: str, values: Any = ()) -> None:
        fired_a_trigger = bool(sent) and sent[-1] == (sql, values)
        if not fired_a_trigger and sql.rstrip(";") not in ("BEGIN", "BEGIN IMMEDIATE", "COMMIT"):
            sent.append((sql, values))

    def watch(connection: Any, *_: Any) -> None:
        driver = connection.driver_connection
        if driver in watched or engine.dialect.name == "mysql":
            return
        watched.add(driver)
        if engine.dialect.name == "sqlite":
            connection.run_async(lambda driver: driver.set_trace_callback(note))
        else:
            driver.add_query_logger(lambda query: note(query.query, query.args))

    async def execute(connection: Any, facts: Any, query: Query) -> Any:
        note(query.statement.sql, query.values)  # as asyncmy tells nobody
        return await mysql_execute(connection, facts, query)

    mysql_execute = mysql_running._execute
    monkeypatch.setattr(mysql_running, "_execute", execute)
    event.listen(engine, "checkout", watch)
    await store.session("alpha").set_metadata({"a": 1})  # every connection has been prepared
    await store.session("alpha").get_metadata()

    async def sent_by(call: Awaitable[Any]) -> Sent:
        sent.clear()
        await call
        await asyncio.sleep(0)  # asyncpg tells its loggers in the next turn of the loop
        return list(sent)

    return sent_by


@pytest.fixture
async def sent_by(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What a call of ``store`` sends."""
    return await watching(store, monkeypatch)


READS: dict[str, Callable[[MetadataSession], Awaitable[Any]]] = {
    "all metadata": lambda session: session.get_metadata(),
    "some metadata": lambda session: session.get_metadata(["a", "b", "c"]),
    "metadata as of": lambda session: session.get_metadata(as_of=1),
    "find": lambda session: session.find_sessions_by_metadata("a", 1),
    "items": lambda session: session.get_items(),
    "last items": lambda session: session.get_items(limit=5),
    "history": lambda session: session.history(),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
async def test_a_read_is_one_statement(
    store: MetadataStore, sent_by: Watch, read: Callable[[MetadataSession], Awaitable[Any]]
) -> None:
    sent = await sent_by(read(store.session("alpha")))
    assert len(sent) == 1, sent


@pytest.mark.parametrize("of_a_user", [False, True])
async def test_many_reads_of_items_are_few_statements(
    backend: Backend, store: MetadataStore, sent_by: Watch, of_a_user: bool
) -> None:
    """Each is given what it would be given alone, however many it asked for."""
    arguments: dict[str, Any] = {"user_id": "ann"} if of_a_user else {}
    sessions = [store.session(f"s{n}", **arguments) for n in range(30)]
    for n, session in enumerate(sessions):
        await session.add_items([{"role": "user", "content": f"{n}.{k}"} for k in range(n)])
    calls = [(session, limit) for session in sessions for limit in (1, 3, 50)]
    alone = [await session.get_items(limit) for session, limit in calls]
    found: list[Any] = []

    async def together() -> None:
        found.extend(await asyncio.gather(*(session.get_items(limit) for session, limit in calls)))

    sent = await sent_by(together())
    assert found == alone
    assert [len(items) for items in alone] == [min(n, k) for n in range(30) for k in (1, 3, 50)]
    if backend.name == "postgresql":
        assert len(sent) < 6


def statements(sent: Sent) -> list[str]:
    """One that SQLite is told to run for each row of many, which is one hop, counts once."""
    return list(dict.fromkeys(sql.partition(" VALUES (")[0] for sql, _ in sent))


async def test_a_write_sends_no_more_for_many_keys_or_many_sessions(
    backend: Backend, store: MetadataStore, sent_by: Watch
) -> None:
    many_keys = {f"key {n}": n for n in range(100)}
    sessions = [store.session(f"s{n}") for n in range(50)]
    await asyncio.gather(*(session.set_metadata({"a": 0}) for session in sessions))
    one = statements(await sent_by(sessions[0].set_metadata({"a": 1})))
    many = statements(await sent_by(sessions[0].set_metadata(many_keys)))
    calls = asyncio.gather(*(s.set_metadata(many_keys) for s in sessions))
    together = statements(await sent_by(calls))
    assert len(one) == len(many) == len(together)
    if backend.name == "postgresql":
        assert len(one) == 1


# --- Plans --------------------------------------------------------------------------------------

KEY_VALUE = "idx_agent_sessions_metadata_key_value"
SESSION_TIME = "idx_agent_messages_session_time"
BY_SESSION = {
    "sqlite": "sqlite_autoindex_agent_sessions_metadata_1",
    "postgresql": "agent_sessions_metadata_pkey",
    "mysql": "PRIMARY",
}
BY_STREAM = {
    "sqlite": "sqlite_autoindex_agent_events_1",
    "postgresql": "Index Cond: (((stream_id)::text = ",
    "mysql": "PRIMARY",
}
BY_POSITION = {
    "sqlite": "INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
    "postgresql": "idx_agent_events_position",
    "mysql": "idx_agent_events_position",
}
PLANNED: dict[str, tuple[Callable[[MetadataStore], Awaitable[Any]], dict[str, str]]] = {
    "find": (
        lambda store: store.find_sessions_by_metadata("state", 7, limit=10),
        dict.fromkeys(BY_SESSION, KEY_VALUE),
    ),
    "find all": (
        lambda store: store.find_sessions_by_metadata("state", 7, limit=None, after="s5"),
        dict.fromkeys(BY_SESSION, KEY_VALUE),
    ),
    "get": (lambda store: store.session("s77").get_metadata(), BY_SESSION),
    "get some": (lambda store: store.session("s77").get_metadata(["state"]), BY_SESSION),
    "as of": (lambda store: store.session("s77").get_metadata(as_of=1), BY_STREAM),
    "history": (lambda store: store.session("s77").history(), BY_STREAM),
    "events": (lambda store: anext(store.events(2490)), BY_POSITION),
    "last items": (
        lambda store: store.session("s77").get_items(3),
        dict.fromkeys(BY_SESSION, SESSION_TIME),
    ),
    "last items of many": (
        lambda store: asyncio.gather(*(store.session(f"s{n}").get_items(3) for n in range(9))),
        dict.fromkeys(BY_SESSION, SESSION_TIME),
    ),
}
ANALYZE = {
    "sqlite": "ANALYZE",
    "postgresql": "ANALYZE",
    "mysql": "ANALYZE TABLE agent_sessions_metadata, agent_events, agent_messages",
}
SCANS = r"SCAN agent_|Seq Scan on agent_|'agent_\w+', 'ALL'"
SORTS = r"Sort|B-TREE FOR ORDER BY|filesort"


async def test_reads_go_through_their_indexes(store: MetadataStore, sent_by: Watch) -> None:
    sessions = [store.session(f"s{n}") for n in range(2000)]
    await asyncio.gather(
        *(session.set_metadata({"state": n % 500, "n": n}) for n, session in enumerate(sessions)),
        *(session.add_items([{"role": "user", "content": "x"}] * 5) for session in sessions[:500]),
    )
    dialect = store.engine.dialect.name
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql(ANALYZE[dialect])
    for name, (read, index) in PLANNED.items():
        plan = await explain(store.engine, *(await sent_by(read(store)))[-1])
        assert index[dialect] in plan, f"{name}: {plan}"
        assert not re.search(SCANS, plan), f"{name}: {plan}"
        if name.startswith("find"):
            assert not re.search(SORTS, plan), f"{name}: {plan}"


async def explain(engine: AsyncEngine, sql: str, values: Any) -> str:
    how = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # which would rather scan tables as small as ours
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            await connection.exec_driver_sql("SET LOCAL enable_hashjoin = off")
        plan = await connection.exec_driver_sql(f"{how} {sql}", tuple(values))
        return "\n".join(str(tuple(row)) for row in plan)


async def test_the_past_takes_work_in_proportion_to_its_length(
    store: MetadataStore, sent_by: Watch
) -> None:
    """And not to its square: some databases go through a whole window for each of its rows."""
    work: list[int] = []
    for length in (100, 400):
        session = store.session(f"of-{length}")
        await asyncio.gather(*(session.set_metadata({"a": n}) for n in range(length)))
        (*_, (sql, values)) = await sent_by(session.get_metadata(as_of=length))
        work.append(await work_of(store.engine, sql, values))
    assert work[0] > 100
    assert work[1] < 6 * work[0], work


@pytest.mark.parametrize("structured_metadata", [False, True])
async def test_a_batch_takes_work_in_proportion_to_its_length(
    postgresql_backend: Backend,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    structured_metadata: bool,
) -> None:
    """A planner that expects few rows would try all pairs of them."""
    store = MetadataStore(engine, structured_metadata=structured_metadata)
    await store.create_tables()
    sent_by, work = await watching(store, monkeypatch), list[int]()
    for length in (20, 80):
        sessions = [store.session(f"{length}-{n}") for n in range(length)]
        calls = [session.add_items([{"role": "user", "content": "x"}] * 2) for session in sessions]
        calls += [session.set_metadata({"a": 1}) for session in sessions]
        (*_, (sql, (events, *others))) = await sent_by(asyncio.gather(*calls))
        assert events.count("event_id") == 2 * length
        again = re.sub('"event_id":"[^"]+"', lambda _: f'"event_id":"{uuid4()}"', events)
        work.append(await work_of(engine, sql, (again, *others)))
    assert work[0] > 100
    assert work[1] < 6 * work[0], work
    assert await verify_projection(store) == []


async def work_of(engine: AsyncEngine, sql: str, values: Any) -> int:
    """What the database counts: instructions on SQLite, else the rows that it went through."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            explained = await connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", tuple(values)
            )
            return rows_of_plan(explained.scalar_one()[0]["Plan"])
        if engine.dialect.name == "mysql":
            await connection.exec_driver_sql("FLUSH STATUS")
            await connection.exec_driver_sql(sql, tuple(values))
            counts: Any = await connection.exec_driver_sql(
                "SHOW SESSION STATUS LIKE 'Handler_read%%'"
            )
            return sum(int(rows) for _, rows in counts)
        steps = 0

        def count() -> bool:
            nonlocal steps
            steps += 1
            return False  # go on

        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.set_progress_handler(count, 10)
        await connection.exec_driver_sql(sql, tuple(values))
        await driver.set_progress_handler(None, 0)
        return steps


FILTERS = ("Filter", "Join Filter", "Index Recheck")


def rows_of_plan(plan: dict[str, Any]) -> int:
    below = sum(map(rows_of_plan, plan.get("Plans", ())))
    rows = plan["Actual Rows"] + sum(plan.get(f"Rows Removed by {how}", 0) for how in FILTERS)
    return below + int(rows * plan["Actual Loops"])
