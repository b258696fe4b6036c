"""Replay: folding a projection into rows or scratch tables, without touching its own tables."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, insert, literal, literal_column, or_, select

from eventmeta.core.as_of import AsOf
from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import RecordedEvent
from eventmeta.database.corruption import naming_corruption
from eventmeta.dialects.statement import Program
from eventmeta.log.event_log import EventLog
from eventmeta.projector.shadow_tables import ShadowTables
from eventmeta.projector.target import ProjectionTarget, live_target
from eventmeta.queries.moments import overtaken_positions
from eventmeta.read_models.apply import apply_events
from eventmeta.read_models.projection_checks import check_projection
from projections import AnyProjection, AppliedProjection

PAGE = 1_000


@dataclass(frozen=True)
class Replay:
    """The replay of a projection on a part of the log.

    Attributes:
        log: The event log.
        projection: The projection, which need not be registered.
        until: The end of the part; None for the whole log.
    """

    log: EventLog
    projection: AnyProjection
    until: AsOf | None

    def __post_init__(self) -> None:
        """Refuse a projection that cannot be kept."""
        check_projection(self.projection, self.log.database.tables, self.log.database.dialect)

    async def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the projection's first table, as they were then."""
        target = self._target
        log = self.log
        if target.folded is not None:
            fold = target.rows(target.relation(*await self._conditions()))
            async with naming_corruption(log):
                rows = await log.database.read(fold, log.database.limits.long)
            return _named(target.tables[0], rows)
        shadow = self._scratch(f"_replay_{secrets.token_hex(4)}")
        async with self._dropped_on_failure(shadow):
            await self._fill(shadow)
            table = shadow.tables[0]
            rows = await log.database.read(select(*table.columns))
        await log.database.fold(shadow.drop)
        return _named(table, rows)

    async def into(self, suffix: str) -> list[str]:
        """Fill scratch tables, leave them there, and return their names.

        Their names are those of the projection's own tables with ``suffix``.
        """
        shadow = self._scratch(suffix)
        await self.log.database.fold(shadow.drop)
        async with self._dropped_on_failure(shadow):
            await self._fill(shadow)
        return [table.name for table in shadow.tables]

    @asynccontextmanager
    async def _dropped_on_failure(self, shadow: ShadowTables) -> AsyncGenerator[None]:
        """Drop the tables if the block fails; raise the block's error even if dropping fails."""
        try:
            yield
        except BaseException:
            with suppress(EventMetaError):
                await self.log.database.fold(shadow.drop)
            raise

    async def _fill(self, shadow: ShadowTables) -> None:
        """Create the tables of ``shadow``, and fill them."""
        log, target = self.log, self._target
        await log.database.fold(shadow.create)
        if target.folded is None:
            await self._apply(shadow.tables)
        else:
            table = shadow.tables[0]
            fold = target.rows(target.relation(*await self._conditions()))
            filling = insert(table).from_select([column.name for column in table.columns], fold)
            statement = self.log.database.dialect.compile(filling)

            def program() -> Program[None]:
                yield statement()

            async with naming_corruption(log):
                await log.database.fold(program, long=True)
        await log.database.fold(shadow.finish, long=True)

    async def _apply(self, tables: Sequence[Table]) -> None:
        """Apply the log in its order, one page at a time."""
        applied = self._target.applied
        assert applied is not None
        page: list[RecordedEvent] = []
        events = self.log.read_all(types=applied.event_types, conditions=await self._conditions())
        async for event in events:
            if event.stream_type == applied.stream_type:
                page.append(event)
            if len(page) == PAGE:
                await self._apply_page(applied, page, tables)
                page = []
        await self._apply_page(applied, page, tables)

    async def _apply_page(
        self, applied: AppliedProjection, page: Sequence[RecordedEvent], tables: Sequence[Table]
    ) -> None:
        dialect = self.log.database.dialect

        async def work() -> None:
            async with dialect.transaction() as connection:
                await apply_events(applied, dialect, connection, page, tables)

        await self.log.database.repeated(work)

    async def _conditions(self) -> list[ColumnElement[bool]]:
        events = self.log.database.tables.events
        log = events.c
        horizon = await self.log.horizon()
        conditions = [log.position <= literal(horizon)]
        if self.until is not None:
            column = log[self.until.column]
            bound = literal(self.until.value, column.type)
            past = column <= bound
            if self.until.column == "recorded_at":
                rows = await self.log.database.scan(overtaken_positions(events, bound))
                overtaken: list[ColumnElement[int]]
                overtaken = [literal_column(str(int(position))) for (position,) in rows]
                past = or_(past, log.position.in_(overtaken)) if overtaken else past
            conditions.append(past)
        return conditions

    @property
    def _target(self) -> ProjectionTarget:
        return live_target(self.projection, self.log.database.tables, self.log.database.dialect)

    def _scratch(self, suffix: str) -> ShadowTables:
        return ShadowTables.of(self.projection.tables, self.log.database.dialect, suffix)


def _named(table: Table, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in rows]
