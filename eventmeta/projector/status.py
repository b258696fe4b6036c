"""How far everything is: the log, and each projection behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, literal, select

from eventmeta.database import Database
from eventmeta.dialects.statement import Row
from eventmeta.projector.catch_up import live_mover
from eventmeta.projector.checkpoints import BUILDING, Checkpoint, Key, key_values
from eventmeta.registry import Registered


@dataclass(frozen=True)
class OpenAppend:
    """An append that has begun and not ended, for which readers of the feed wait.

    Attributes:
        after: Its events come after this position.
        seconds: How long its transaction has been open; None if this role may not know.
    """

    after: int
    seconds: float | None


@dataclass(frozen=True)
class ProjectionStatus:
    """How far a projection is.

    Attributes:
        name: The projection.
        version: Of its table; None if that has not been filled yet.
        inline: It is part of every append, so it is never behind once it has been filled.
        checkpoint: The position up to which the log is applied.
        lag_events: How many events it has not applied yet, up to the horizon.
        lag_seconds: How long ago the first of them was recorded; 0.0 if there is none.
        parked_streams: How many streams wait for `retry`.
        lease_holder: Who moves it on; None if nobody does.
        is_rebuilt: Whether its table is being built anew.
    """

    name: str
    version: int | None
    inline: bool
    checkpoint: int
    lag_events: int
    lag_seconds: float
    parked_streams: int
    lease_holder: str | None
    is_rebuilt: bool


@dataclass(frozen=True)
class Status:
    """How far everything is.

    Attributes:
        head: The last position that is visible.
        horizon: The position up to which the feed can be read.
        oldest_open_append: What holds the horizon back; None if nothing does, or if the database
            does not tell: only PostgreSQL does, and elsewhere nothing can.
        projections: Each projection, by name.
    """

    head: int
    horizon: int
    oldest_open_append: OpenAppend | None
    projections: dict[str, ProjectionStatus]


async def status_of(database: Database) -> Status:
    """How far everything is at about this moment."""
    log, position = database.log, database.tables.events.c.position
    horizon = await log.horizon()
    ((head,),) = await log.read(select(func.coalesce(func.max(position), 0)))
    oldest = database.dialect.oldest_append(database.tables)
    rows: Sequence[Row] = () if oldest is None else await log.read(oldest)
    return Status(
        head=head,
        horizon=horizon,
        oldest_open_append=_open_append(rows[0]) if rows else None,
        projections={
            each.projection.name: await _of_projection(database, each, head, horizon)
            for each in database.registry
        },
    )


def _open_append(row: Row) -> OpenAppend:
    after, milliseconds = row
    return OpenAppend(after, None if milliseconds is None else milliseconds / 1_000)


async def _of_projection(
    database: Database, registered: Registered, head: int, horizon: int
) -> ProjectionStatus:
    name = registered.projection.name
    mover = live_mover(database.log, registered.projection)
    target = mover.target
    found = await mover.checkpoint()
    building = mover.checkpoints.read(**key_values(Key(name, BUILDING)))
    parked = mover.parking.count(**key_values(target.key))
    rebuilds, ((parked_streams,),) = await database.log.run(
        lambda: database.dialect.read([building, parked])
    )
    version = found.version if found else None
    if registered.built_in and version is None:
        version = registered.projection.version  # as old as its table
    is_complete = registered.inline and version == registered.projection.version
    checkpoint = head if is_complete else (found.position if found else 0)
    log = database.tables.events.c
    waiting = target.relation(log.position > literal(checkpoint), log.position <= literal(horizon))
    query = select(func.count(), func.min(waiting.c.recorded_at, type_=log.recorded_at.type))
    ((events, first),) = await database.log.read(query)
    return ProjectionStatus(
        name=name,
        version=version,
        inline=registered.inline,
        checkpoint=checkpoint,
        lag_events=0 if is_complete else events,
        lag_seconds=0.0 if is_complete else _age(first),
        parked_streams=parked_streams,
        lease_holder=found.held_by if found else None,
        is_rebuilt=any(_is_under_way(Checkpoint(*row)) for row in rebuilds),
    )


def _is_under_way(building: Checkpoint) -> bool:
    """Or broken off: whoever ended while clearing away leaves a checkpoint that says nothing."""
    return building.held_by is not None or building.until is not None


def _age(recorded_at: datetime | None) -> float:
    if recorded_at is None:
        return 0.0
    return max((datetime.now(UTC) - recorded_at).total_seconds(), 0.0)
