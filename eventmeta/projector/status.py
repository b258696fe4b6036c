"""The status of a store: how far the log, each projection and each subscription are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, literal, select

from eventmeta.dialects.statement import Row
from eventmeta.log.event_log import EventLog
from eventmeta.projector.checkpoints import (
    BUILDING,
    LIVE,
    SUBSCRIPTION,
    Checkpoint,
    CheckpointStatements,
    Key,
)
from eventmeta.projector.parked_streams import ParkingStatements
from eventmeta.projector.target import live_target
from eventmeta.read_models.registry import RegisteredProjection
from projections import Events


@dataclass(frozen=True)
class OpenAppend:
    """An append that has begun and not ended. Readers of the feed wait for it.

    Attributes:
        after: Its events come after this position.
        seconds: How long its transaction has been open; None if this database role may not know.
    """

    after: int
    seconds: float | None


@dataclass(frozen=True)
class ProjectionStatus:
    """The status of a projection.

    Attributes:
        name: The name of the projection.
        is_registered: Whether it is registered in this process. If not, only what the database
            keeps is known.
        version: The version of its table; None if the table has not been filled yet.
        inline: Whether it is updated in every append. Then it is never behind once it has been
            filled. False if it is not registered here.
        checkpoint: The position up to which the log is applied.
        lag_events: How many events it has not applied yet, up to the horizon. If it is not
            registered here, events of all types are counted.
        lag_seconds: How long ago the first of them was recorded; 0.0 if there is none.
        parked_streams: How many streams wait for `retry`.
        lease_holder: The worker that updates it; None if there is none.
        is_rebuilt: Whether its table is being rebuilt.
    """

    name: str
    is_registered: bool
    version: int | None
    inline: bool
    checkpoint: int
    lag_events: int
    lag_seconds: float
    parked_streams: int
    lease_holder: str | None
    is_rebuilt: bool


@dataclass(frozen=True)
class SubscriptionStatus:
    """The status of a subscription.

    Attributes:
        name: The name of the subscription.
        position: The position up to which its events are handled.
        lag_events: How many events come after that position, up to the horizon. Events of types
            that the subscription does not ask for are included.
        lag_seconds: How long ago the first of them was recorded; 0.0 if there is none.
        reader: The reader that follows it; None if there is none.
    """

    name: str
    position: int
    lag_events: int
    lag_seconds: float
    reader: str | None


@dataclass(frozen=True)
class Status:
    """The status of a store.

    Attributes:
        head: The last position that is visible.
        horizon: The position up to which the feed can be read.
        oldest_open_append: The append that holds the horizon back; None if there is none. Only
            PostgreSQL reports it; in other databases no append can hold the horizon back.
        projections: Each projection that is registered here or that the database knows, by name.
        subscriptions: Each subscription that the database knows, by name.
    """

    head: int
    horizon: int
    oldest_open_append: OpenAppend | None
    projections: dict[str, ProjectionStatus]
    subscriptions: dict[str, SubscriptionStatus]


async def status_of(log: EventLog) -> Status:
    """Return the status of the store at about this moment."""
    position = log.database.tables.events.c.position
    horizon = await log.horizon()
    ((head,),) = await log.database.read(select(func.coalesce(func.max(position), 0)))
    oldest = log.database.dialect.oldest_append(log.database.tables)
    rows: Sequence[Row] = () if oldest is None else await log.database.read(oldest)
    kept = await _kept(log, head, horizon)
    return Status(
        head=head,
        horizon=horizon,
        oldest_open_append=_open_append(rows[0]) if rows else None,
        projections=await kept.projections(),
        subscriptions=await kept.subscriptions(),
    )


def _open_append(row: Row) -> OpenAppend:
    after, milliseconds = row
    return OpenAppend(after, None if milliseconds is None else milliseconds / 1_000)


async def _kept(log: EventLog, head: int, horizon: int) -> _Kept:
    database = log.database
    checkpoints = CheckpointStatements(database.tables, database.dialect).all
    counts = ParkingStatements(database.tables, database.dialect).counts
    queries = [checkpoints(), counts()]
    found, parked = await database.run(lambda: database.dialect.read(queries))
    return _Kept(
        log,
        head,
        horizon,
        {Key(*row[:2]): Checkpoint(*row[2:]) for row in found},
        {Key(*row[:2]): row[2] for row in parked},
    )


@dataclass(frozen=True)
class _Kept:
    """The checkpoints and parked streams in the database, also those of other processes."""

    log: EventLog
    head: int
    horizon: int
    checkpoints: dict[Key, Checkpoint]
    parked: dict[Key, int]

    async def projections(self) -> dict[str, ProjectionStatus]:
        """Return the status of each projection, those that are registered here first."""
        registered: dict[str, RegisteredProjection | None] = {
            each.projection.name: each for each in self.log.registry
        }
        for key in (*self.checkpoints, *self.parked):
            if key.state != SUBSCRIPTION:
                registered.setdefault(key.projection, None)
        return {name: await self._projection(name, each) for name, each in registered.items()}

    async def subscriptions(self) -> dict[str, SubscriptionStatus]:
        """Return the status of each subscription."""
        return {
            key.projection: SubscriptionStatus(
                key.projection,
                found.position,
                *await self._lag(found.position),
                reader=found.held_by,
            )
            for key, found in self.checkpoints.items()
            if key.state == SUBSCRIPTION
        }

    async def _projection(
        self, name: str, registered: RegisteredProjection | None
    ) -> ProjectionStatus:
        live, building = Key(name, LIVE), Key(name, BUILDING)
        found, rebuild = self.checkpoints.get(live), self.checkpoints.get(building)
        version = found.version if found else None
        if version is None and registered is not None and registered.built_in:
            version = registered.projection.version  # it has been filled since its table exists
        inline = registered is not None and registered.inline
        is_complete = registered is not None and inline and version == registered.projection.version
        checkpoint = self.head if is_complete else (found.position if found else 0)
        events, seconds = (0, 0.0) if is_complete else await self._lag(checkpoint, registered)
        return ProjectionStatus(
            name=name,
            is_registered=registered is not None,
            version=version,
            inline=inline,
            checkpoint=checkpoint,
            lag_events=events,
            lag_seconds=seconds,
            parked_streams=self.parked.get(live, 0),
            lease_holder=found.held_by if found else None,
            is_rebuilt=rebuild is not None and _is_under_way(rebuild),
        )

    async def _lag(
        self, after: int, registered: RegisteredProjection | None = None
    ) -> tuple[int, float]:
        """Return how many events come after ``after`` up to the horizon, and the first one's age.

        The age is in seconds.
        """
        log = self.log.database.tables.events.c
        bounds = (log.position > literal(after), log.position <= literal(self.horizon))
        if registered is None:
            waiting: Events = self.log.events(*bounds)
        else:
            tables, dialect = self.log.database.tables, self.log.database.dialect
            waiting = live_target(registered.projection, tables, dialect).relation(*bounds)
        query = select(func.count(), func.min(waiting.c.recorded_at, type_=log.recorded_at.type))
        ((events, first),) = await self.log.database.read(query)
        return events, _age(first)


def _is_under_way(building: Checkpoint) -> bool:
    """Return whether a rebuild is running or was interrupted.

    A worker that ended while it dropped tables leaves a checkpoint that does not count.
    """
    return building.held_by is not None or building.until is not None


def _age(recorded_at: datetime | None) -> float:
    if recorded_at is None:
        return 0.0
    return max((datetime.now(UTC) - recorded_at).total_seconds(), 0.0)
