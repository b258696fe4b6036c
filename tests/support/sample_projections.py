"""Projections of an app's own, one folded by the database and one applied by Python, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, Index, MetaData, String, Table, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta import MetadataStore, NewEvent, RecordedEvent
from eventmeta.projector.worker import Follower, make_current
from projections import AnySelect, AppliedProjection, Event, Events, Projection
from projections.types import BigInt, LongText, SessionId

# --- Folded by the database: what is tagged, and since when ---------------------------------------

TAGGED, UNTAGGED = "tagged", "untagged"


def tags(name: str = "tags", **fields: Any) -> Projection:
    """The tags that each session has. An event of no tag cannot be applied."""
    table = Table(
        name,
        MetaData(),
        Column("session_id", SessionId, primary_key=True),
        Column("tag", String(64), primary_key=True),
        Column("since", BigInt, nullable=False),
        Column("last", BigInt, nullable=False),
        Column("note", LongText, nullable=False),
        Index(f"idx_{name}_tag", "tag", "session_id"),
    )
    projection = Projection(
        name=name,
        version=1,
        stream_type="session",
        event_types=frozenset({TAGGED, UNTAGGED}),
        table=table,
        select=fold_tags,
        kept=frozenset({"since"}),
    )
    return replace(projection, **fields)


def fold_tags(events: Events) -> AnySelect:
    """It trusts that there are no events but those it has asked for."""
    tag = events.field("tag")
    same = (events.c.stream_id, tag)
    removal = case((events.c.type == UNTAGGED, events.c.version), else_=0)
    ranked = select(
        events.c.stream_id.label("session_id"),
        func.coalesce(tag, "").label("tag"),
        events.field("note").label("note"),
        events.c.type,
        events.c.version,
        events.c.position,
        func.row_number()
        .over(partition_by=same, order_by=events.c.version.desc())
        .label("recency"),
        func.max(removal).over(partition_by=same).label("removed"),
    ).subquery("ranked")
    row = ranked.c

    def latest(column: Any) -> Any:
        return func.max(case((row.recency == 1, column)))

    return select(
        row.session_id,
        row.tag,
        func.min(case((row.version > row.removed, row.position))).label("since"),
        func.max(row.position).label("last"),
        latest(row.note).label("note"),
        (latest(row.type) == TAGGED).label("present"),
        (func.max(row.removed) > 0).label("restarted"),
    ).group_by(row.session_id, row.tag)


def tag(name: str, note: str | None = "") -> NewEvent:
    """A session gets a tag; with no note, it is an event that `tags` cannot apply."""
    return NewEvent(TAGGED, {"tag": name, "note": note})


def untag(name: str) -> NewEvent:
    return NewEvent(UNTAGGED, {"tag": name, "note": ""})


def tags_of(events: Iterable[RecordedEvent]) -> list[tuple[Any, ...]]:
    """The rows of `tags` by plain Python."""
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for event in events:
        key = (event.stream_id, str(event.data.get("tag")))
        if event.type == TAGGED:
            since = found[key][0] if key in found else int(event.position)
            found[key] = (since, int(event.position), event.data["note"])
        elif event.type == UNTAGGED:
            found.pop(key, None)
    return sorted((*key, *values) for key, values in found.items())


# --- Applied by Python: which events came, in which order -----------------------------------------


def trail(
    name: str = "trail",
    types: Iterable[str] = ("noted", "refused"),
    refused: Sequence[Any] = (),
    stream_type: str = "session",
) -> AppliedProjection:
    """The versions of the events of each stream, as they came; those ``refused`` by ``n`` fail."""
    table = Table(
        name,
        MetaData(),
        Column("stream_id", SessionId, primary_key=True),
        Column("seen", LongText, nullable=False),
        Column("last", BigInt, nullable=False),
        Index(f"idx_{name}_last", "last"),
    )

    async def apply(
        connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
    ) -> None:
        for event in events:
            if event.data.get("n") in refused:
                raise ValueError(f"{event.data['n']} is refused")
            await note(connection, event, tables[0])

    return AppliedProjection(name, 1, stream_type, frozenset(types), (table,), apply)


async def note(connection: AsyncConnection, event: Event, table: Table) -> None:
    changed = await connection.execute(
        update(table)
        .where(table.c.stream_id == event.stream_id)
        .values(seen=table.c.seen + f",{event.version}", last=event.position)
    )
    if not changed.rowcount:
        await connection.execute(
            insert(table).values(
                stream_id=event.stream_id, seen=str(event.version), last=event.position
            )
        )


def trail_of(
    events: Iterable[RecordedEvent],
    types: Iterable[str] = ("noted", "refused"),
    stream_type: str = "session",
) -> list[tuple[Any, ...]]:
    """The rows of `trail` by plain Python."""
    found: dict[str, tuple[str, int]] = {}
    for event in events:
        if event.type in types and event.stream_type == stream_type:
            before = f"{found[event.stream_id][0]}," if event.stream_id in found else ""
            found[event.stream_id] = (f"{before}{event.version}", int(event.position))
    return sorted((stream_id, *values) for stream_id, values in found.items())


def noted(n: Any = 0, **options: Any) -> NewEvent:
    return NewEvent("noted", {"n": n}, **options)


# --- Using them -----------------------------------------------------------------------------------


async def rows(store: MetadataStore, table: Table | str) -> list[tuple[Any, ...]]:
    """The rows of a table, in their order in Python."""
    query = f"SELECT * FROM {table if isinstance(table, str) else table.name}"
    async with store.engine.connect() as connection:
        found = await connection.exec_driver_sql(query)
        return sorted(tuple(row) for row in found)


async def log_of(store: MetadataStore) -> list[RecordedEvent]:
    return [event async for event in store.events()]


async def follower_of(store: MetadataStore, name: str, batch_size: int = 1_000) -> Follower:
    """Whoever moves a projection on, batch by batch."""
    log = store.log
    await log.database.opening.connect(create=False)
    registered = log.registry[name]
    await make_current(log, registered, "tests")
    return Follower(log, registered, "tests", batch_size)
