"""What the projector asks of the database goes through indexes, however long the log is."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataStore
from eventmeta.dialects.statement import Query
from eventmeta.log.commands import Append, EventData
from eventmeta.projector.catch_up import CatchUp
from eventmeta.projector.checkpoints import key_values
from eventmeta.projector.target import live_target
from tests.support.acting import ADMIN, together
from tests.support.sample_projections import tags, trail

pytestmark = pytest.mark.each_dialect

SESSIONS, EVENTS = 600, 5
STREAM = {"stream_id": "s77", "stream_type": "session"}
OF_STREAM = {"of_stream_id": "s77", "of_stream_type": "session"}
RANGE = {"after": 2_900, "until": 2_990}

QUERIES: dict[str, Callable[[CatchUp, dict[str, Any]], list[Query]]] = {
    "the end of a batch": lambda mover, key: [mover.target.batch_end(**RANGE, limit=50)],
    "a batch": lambda mover, key: [each(**RANGE, **key) for each in mover.target.fold_range],
    "the events of a batch": lambda mover, key: [mover.target.events_in_range(**RANGE, **key)],
    "a parked stream": lambda mover, key: [
        each(**STREAM, after=5, until=2_990, **key) for each in mover.target.fold_stream
    ],
    "the events of a parked stream": lambda mover, key: [
        mover.target.events_of_stream(**STREAM, after=5, until=2_990, **key)
    ],
    "the streams to fill next": lambda mover, key: [mover.target.streams_end(after="s5", limit=9)],
    "filling some streams": lambda mover, key: [
        mover.target.fill(first="s50", last="s52", until=2_990)
    ],
    "a checkpoint": lambda mover, key: [
        mover.checkpoints.read(**key),
        mover.checkpoints.lock(**key),
    ],
    "the parked streams": lambda mover, key: [
        mover.parking.all(**key),
        mover.parking.one(**key, **OF_STREAM),
    ],
}
FOLDED = ("a batch", "a parked stream", "filling some streams")
ANALYZE = {
    "sqlite": "ANALYZE",
    "postgresql": "ANALYZE",
    "mysql": "ANALYZE TABLE agent_events, agent_streams, agent_parked_streams, agent_checkpoints",
}
SCANS = r"SCAN agent_|Seq Scan on agent_|'agent_\w+', 'ALL'"
BY_POSITION = {
    "sqlite": "INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
    "postgresql": "idx_agent_events_position",
    "mysql": "idx_agent_events_position",
}
BY_STREAM = {
    "sqlite": "(stream_id=? AND stream_type=?",
    "postgresql": "(stream_id)::text",
    "mysql": "PRIMARY",
}


async def fill(store: MetadataStore) -> None:
    """Many events of many streams, and parked streams of other projections."""
    for n in range(EVENTS):
        fact = (
            EventData("tagged", {"tag": str(n), "note": ""})
            if n % 2
            else EventData("noted", {"n": n})
        )
        commands = (ADMIN.session(Append, f"s{m}", fact=fact) for m in range(SESSIONS))
        await together(store, *commands)
    parked = store.log.database.tables.parked_streams
    row = {"state": "live", "stream_type": "session", "position": 1, "error": "", "attempts": 1}
    rows = [
        {**row, "projection": f"p{n % 10}", "stream_id": f"s{n}", "parked_at": datetime.now(UTC)}
        for n in range(1_000)
    ]
    async with store.engine.begin() as connection:
        await connection.execute(insert(parked), rows)
        await connection.exec_driver_sql(ANALYZE[store.engine.dialect.name])


async def test_the_projector_scans_no_table(store: MetadataStore) -> None:
    store.register(tags())
    store.register(trail())
    await store.create_tables()
    await store.catch_up()
    await fill(store)
    kind = store.engine.dialect.name
    for name in ("tags", "trail"):
        projection = store.log.registry[name].projection
        target = live_target(projection, store.log.database.tables, store.log.database.dialect)
        mover = CatchUp(store.log.database, target)
        for what, queries in QUERIES.items():
            if target.folded is None and what in (
                "a batch",
                "a parked stream",
                "filling some streams",
            ):
                continue
            for query in queries(mover, key_values(target.key)):
                plan = await explain(store.engine, query)
                assert not re.search(SCANS, plan), f"{what}: {plan}"
                if "batch" in what:
                    assert BY_POSITION[kind] in plan, f"{what}: {plan}"
                if "parked stream" in what and "streams" not in what:
                    assert BY_STREAM[kind] in plan, f"{what}: {plan}"


async def explain(engine: AsyncEngine, query: Query) -> str:
    how = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # which would rather scan tables as small as ours
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = await connection.exec_driver_sql(f"{how} {query.statement.sql}", query.values)
        return "\n".join(str(tuple(row)) for row in plan)
