"""Reading the log: its events in order, and how far they can be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Executable, bindparam, false, or_, select

from eventmeta.commands import StreamKey
from eventmeta.database_errors import StandbyServer
from eventmeta.deadline import Limits
from eventmeta.dialects import Dialect, EventRelation
from eventmeta.dialects.statement import Query, Row
from eventmeta.events import RecordedEvent, read_event
from eventmeta.tables import Tables
from projections import EVENT_COLUMNS, AnySelect

PAGE = 1_000
MAX_POSITION = 2**63 - 1


class LogReading(ABC):
    """The log of one database, as those who follow it read it."""

    dialect: Dialect
    tables: Tables

    @abstractmethod
    async def fetch(self, query: Query, limits: Limits | None = None) -> Sequence[Row]:
        """Return the rows of one query."""

    async def horizon(self) -> int:
        """The highest position below which nothing can still appear.

        A reader that takes only events up to it, and goes on from it, never skips one.

        Raises:
            StandbyServer: The server cannot tell.
        """
        value = 0
        for executable in self.dialect.horizon(self.tables):
            value = await self._bound(executable, value)
        return value

    async def refuse_standby(self) -> None:
        """Raise `StandbyServer` if the server is a standby."""
        await self._bound(self.dialect.horizon(self.tables)[0], 0)

    async def _bound(self, executable: Executable, previous: int) -> int:
        statement = self.dialect.compile(executable)
        ((value,),) = await self.fetch(statement(previous=previous))
        if value is None:
            raise StandbyServer
        return int(value)

    async def read_all(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Collection[str] | None = None,
        stream: StreamKey | None = None,
        conditions: Sequence[ColumnElement[bool]] = (),
        **values: Any,
    ) -> AsyncIterator[RecordedEvent]:
        """The events after position ``after``, in order, up to the horizon as it is at the start.

        Those of one stream are not held up by the horizon: its lock makes them visible in order.

        Args:
            after: The position of the last event already seen.
            until: The last position to read.
            types: Only events of these types.
            stream: Only events of this stream.
            conditions: Only events that meet these.
            **values: The parameters of the conditions.
        """
        end = await self.horizon() if stream is None else MAX_POSITION
        if until is not None:
            end = min(end, until)
        statement = self.dialect.compile(self._page(types, stream).where(*conditions))
        while after < end:
            rows = await self.fetch(statement(after=after, until=end, **values))
            for row in rows:
                yield read_event(row)
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def _page(self, types: Collection[str] | None, stream: StreamKey | None) -> AnySelect:
        log = self.tables.events
        return (
            select(*(log.c[name] for name in EVENT_COLUMNS))
            .where(log.c.position > bindparam("after"), log.c.position <= bindparam("until"))
            .where(*self.conditions(types, stream))
            .order_by(log.c.position)
            .limit(PAGE)
        )

    def conditions(
        self, types: Collection[str] | None, stream: StreamKey | None
    ) -> list[ColumnElement[bool]]:
        """That an event is of one of ``types``, and of ``stream``."""
        log = self.tables.events
        found: list[ColumnElement[bool]] = []
        if types is not None:
            found.append(or_(false(), *(log.c.type == name for name in sorted(types))))
        if stream is not None:
            found.append(log.c.stream_id == stream.stream_id)
            found.append(log.c.stream_type == stream.stream_type)
        return found

    def events(self, *conditions: Any) -> EventRelation:
        """The events that meet ``conditions``, as a relation."""
        log = self.tables.events
        rows = select(*(log.c[name] for name in EVENT_COLUMNS)).where(*conditions)
        return self.dialect.relation(rows.subquery("events"))
