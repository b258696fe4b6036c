"""Replay: a projection folded into rows or scratch tables, without touching its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, insert, literal, literal_column, or_, select

from eventmeta.applying import apply_events
from eventmeta.as_of import AsOf
from eventmeta.corruption import naming_corruption
from eventmeta.database import Database
from eventmeta.dialects.statement import Program
from eventmeta.errors import EventMetaError
from eventmeta.events import RecordedEvent
from eventmeta.moments import overtaken_positions
from eventmeta.projection_checks import check_projection
from eventmeta.projector.shadow import Shadow
from eventmeta.projector.target import Target, live_target
from projections import AnyProjection, AppliedProjection

PAGE = 1_000


@dataclass(frozen=True)
class Replay:
    """A projection, and a part of the log.

    Attributes:
        database: Where.
        projection: Which; it need not be registered.
        until: The end of the part; all there is if None.
    """

    database: Database
    projection: AnyProjection
    until: AsOf | None

    def __post_init__(self) -> None:
        """Refuse what is no projection."""
        check_projection(self.projection, self.database.tables, self.database.dialect)

    async def rows(self) -> list[dict[str, Any]]:
        """The rows of its first table, as they were then."""
        target = self._target
        log = self.database.log
        if target.folded is not None:
            fold = target.rows(target.relation(*await self._conditions()))
            async with naming_corruption(log):
                return _named(target.tables[0], await log.read(fold, log.limits.long))
        shadow = self._scratch(f"_replay_{secrets.token_hex(4)}")
        async with self._dropped_on_failure(shadow):
            await self._fill(shadow)
            table = shadow.tables[0]
            rows = await log.read(select(*table.columns))
        await log.fold(shadow.drop)
        return _named(table, rows)

    async def into(self, suffix: str) -> list[str]:
        """Fill new tables, called after its own with ``suffix``, and leave them there."""
        shadow = self._scratch(suffix)
        await self.database.log.fold(shadow.drop)
        async with self._dropped_on_failure(shadow):
            await self._fill(shadow)
        return [table.name for table in shadow.tables]

    @asynccontextmanager
    async def _dropped_on_failure(self, shadow: Shadow) -> AsyncGenerator[None]:
        """What went wrong is told, whatever becomes of the tables then."""
        try:
            yield
        except BaseException:
            with suppress(EventMetaError):
                await self.database.log.fold(shadow.drop)
            raise

    async def _fill(self, shadow: Shadow) -> None:
        """Make the tables of ``shadow``, with the rows."""
        log, target = self.database.log, self._target
        await log.fold(shadow.create)
        if target.folded is None:
            await self._apply(shadow.tables)
        else:
            table = shadow.tables[0]
            fold = target.rows(target.relation(*await self._conditions()))
            filling = insert(table).from_select([column.name for column in table.columns], fold)
            statement = self.database.dialect.compile(filling)

            def program() -> Program[None]:
                yield statement()

            async with naming_corruption(log):
                await log.fold(program, long=True)
        await log.fold(shadow.finish, long=True)

    async def _apply(self, tables: Sequence[Table]) -> None:
        """A page of the log at a time, in its order."""
        applied = self._target.applied
        assert applied is not None
        page: list[RecordedEvent] = []
        events = self.database.log.read_all(
            types=applied.event_types, conditions=await self._conditions()
        )
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
        dialect = self.database.dialect

        async def work() -> None:
            async with dialect.transaction() as connection:
                await apply_events(applied, dialect, connection, page, tables)

        await self.database.log.repeated(work)

    async def _conditions(self) -> list[ColumnElement[bool]]:
        events = self.database.tables.events
        log = events.c
        horizon = await self.database.log.horizon()
        conditions = [log.position <= literal(horizon)]
        if self.until is not None:
            column = log[self.until.column]
            bound = literal(self.until.value, column.type)
            past = column <= bound
            if self.until.column == "recorded_at":
                rows = await self.database.log.scan(overtaken_positions(events, bound))
                overtaken: list[ColumnElement[int]]
                overtaken = [literal_column(str(int(position))) for (position,) in rows]
                past = or_(past, log.position.in_(overtaken)) if overtaken else past
            conditions.append(past)
        return conditions

    @property
    def _target(self) -> Target:
        return live_target(self.projection, self.database.tables, self.database.dialect)

    def _scratch(self, suffix: str) -> Shadow:
        return Shadow.of(self.projection.tables, self.database.dialect, suffix)


def _named(table: Table, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in rows]
