"""Projections and processes for the tests of the projector."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmeta import MetadataStore
from eventmeta.projector.checkpoints import LeaseToken, new_holder
from eventmeta.projector.worker import Follower, make_current
from projections import AppliedProjection, Event, Projection, metadata_projection
from projections.types import BigInt, SessionId
from tests.support.processes import ROOT

ASYNC, TRACE = "async_metadata", "trace"
TRACED = frozenset({"metadata_set", "metadata_deleted", "noted"})


def async_metadata(version: int = 1) -> Projection:
    """The metadata once more, in a table of its own."""
    made = metadata_projection(MetaData(), ASYNC)
    return replace(made, name=ASYNC, version=version)


async def append_trace(
    connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
) -> None:
    rows = [
        {"position": event.position, "stream_id": event.stream_id, "version": event.version}
        for event in events
    ]
    await connection.execute(insert(tables[0]), rows)


def trace(name: str = TRACE) -> AppliedProjection:
    """A row for each event that was applied, so an event that is applied twice or skipped shows."""
    table = Table(
        name,
        MetaData(),
        Column("n", BigInt, primary_key=True, autoincrement=True),
        Column("position", BigInt, nullable=False),
        Column("stream_id", SessionId, nullable=False),
        Column("version", Integer, nullable=False),
    )
    return AppliedProjection(
        name=name,
        version=1,
        stream_type="session",
        event_types=TRACED,
        tables=(table,),
        apply=append_trace,
    )


def labels(version: int, metadata: MetaData | None = None) -> Projection:
    """The metadata with other columns in version 2."""
    base = metadata_projection(MetaData(), "unused")
    columns = [
        Column("session_id", SessionId, primary_key=True),
        Column("key", String(255), primary_key=True),
        Column("value" if version == 1 else "text", base.table.c.value.type, nullable=False),
    ]

    def fold(events: Any) -> Any:
        row = base.select(events).subquery("row").c
        value = row.value.label("value" if version == 1 else "text")
        return select(row.session_id, row.key, value, row.present, row.restarted)

    table = Table("labels", metadata or MetaData(), *columns)
    changed: dict[str, Any] = {"version": version, "table": table, "select": fold}
    return replace(base, name="labels", kept=frozenset(), fold=None, **changed)


async def applied_in_order(store: MetadataStore, name: str = TRACE) -> list[int]:
    """The positions that `trace` was given; each once, and those of a stream in their order."""
    query = f"SELECT position, stream_id, version FROM {name} ORDER BY n"
    async with store.engine.connect() as connection:
        rows = (await connection.execute(text(query))).all()
    positions = [position for position, _, _ in rows]
    assert len(set(positions)) == len(positions), "applied twice"
    last: dict[str, int] = {}
    for _, stream_id, version in rows:
        assert version > last.get(stream_id, 0), "out of order"
        last[stream_id] = version
    return positions


async def select_rows(store: MetadataStore, table: str) -> list[tuple[Any, ...]]:
    """All rows of a table like that of the metadata."""
    query = "session_id, {0}key{0}, value, created_at, updated_at"
    quote = "`" if store.engine.dialect.name == "mysql" else '"'
    async with store.engine.connect() as connection:
        found = await connection.execute(
            text(f"SELECT {query.format(quote)} FROM {table} ORDER BY 1, 2")
        )
        return [tuple(row) for row in found]


async def left_behind(engine: AsyncEngine) -> list[str]:
    """What a rebuild that has ended must not leave: tables, and checkpoints of what is built."""
    async with engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        query = "SELECT projection FROM agent_checkpoints WHERE state = 'building'"
        building = list(await connection.scalars(text(query)))
    return [name for name in tables if name.endswith(("_building", "_retired"))] + building


def start(code: str, *arguments: str, output: Path | None = None) -> subprocess.Popen[bytes]:
    """A Python program in a process of its own; what it prints is added to ``output``.

    Its errors come out with those of the test.
    """
    with output.open("ab") if output else Path("/dev/null").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
        )


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill them, and wait for that."""
    for process in processes:
        process.kill()
        process.wait()


async def write_metadata(store: MetadataStore, count: int = 5, first: int = 0) -> None:
    for n in range(first, first + count):
        await store.session(f"s{n % 2}").set_metadata({"n": n})


async def holder(store: MetadataStore, name: str = TRACE) -> str | None:
    return (await store.status()).projections[name].lease_holder


class Process:
    """A store as another process has it, with the projections, and one of its workers."""

    def __init__(self, url: str | AsyncEngine, projection: Any) -> None:
        self.engine = create_async_engine(url) if isinstance(url, str) else url
        self.store = MetadataStore(self.engine)
        self.store.register(projection)
        self.registered = self.store.log.registry[projection.name]
        self.follower = Follower(self.store.log, self.registered, new_holder(), 10)

    async def ready(self) -> None:
        await self.store.create_tables()
        await make_current(self.store.log, self.registered, new_holder())

    async def take(self) -> LeaseToken:
        claim = await self.follower.lease.take()
        assert claim is not None
        return claim

    async def take_over(self) -> LeaseToken:
        """Wait for the lease of another to end."""
        while (claim := await self.follower.lease.take()) is None:
            await asyncio.sleep(0.02)
        return claim
