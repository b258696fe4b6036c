"""Reading the log: its events in order, and how far they can be read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Executable, bindparam, false, or_, select

from eventmeta.core.database_errors import StandbyServer
from eventmeta.core.events import RecordedEvent, StreamKey, read_event
from eventmeta.database.database import Database
from eventmeta.dialects.events import EventRelation
from projections import EVENT_COLUMNS, AnySelect
from projections.types import BigInt

PAGE = 1_000
MAX_POSITION = 2**63 - 1


class LogReading:
    """The log of one database, as those who follow it read it.

    Attributes:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    async def horizon(self) -> int:
        """The highest position below which nothing can still appear.

        A reader that takes only events up to it, and goes on from it, never skips one.

        Raises:
            StandbyServer: The server cannot tell.
        """
        value = 0
        for executable in self.database.dialect.horizon(self.database.tables):
            value = await self._bound(executable, value)
        return value

    async def refuse_standby(self) -> None:
        """Raise `StandbyServer` if the server is a standby."""
        await self._bound(self.database.dialect.horizon(self.database.tables)[0], 0)

    async def _bound(self, executable: Executable, previous: int) -> int:
        statement = self.database.dialect.compile(executable)
        ((value,),) = await self.database.fetch(statement(previous=previous))
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
        statement = self.database.dialect.compile(self._page(types, stream).where(*conditions))
        version = await self._version_at(after, stream) if stream is not None else 0
        while after < end:
            bounds = {"after": after, "until": end, "after_version": version}
            rows = await self.database.fetch(statement(**bounds, **values))
            for row in rows:
                yield read_event(row)
            if len(rows) < PAGE:
                return
            after, version = rows[-1][0], rows[-1][3]

    async def _version_at(self, position: int, stream: StreamKey) -> int:
        """Return the version of the event at ``position``; 0 if that is none of ``stream``."""
        if not position:
            return 0
        log = self.database.tables.events
        query = select(log.c.version).where(log.c.position == bindparam("position"))
        query = query.where(*self.conditions(None, stream))
        rows = await self.database.fetch(self.database.dialect.compile(query)(position=position))
        return int(rows[0][0]) if rows else 0

    def _page(self, types: Collection[str] | None, stream: StreamKey | None) -> AnySelect:
        """Return the query: ``after``, ``until``, ``after_version`` → the next events.

        Those of a stream by its key, or each page would go through all of the stream.
        """
        log = self.database.tables.events
        position = log.c.position if stream is None else log.c.position + 0
        page = (
            select(*(log.c[name] for name in EVENT_COLUMNS))
            .where(position > bindparam("after"), position <= bindparam("until"))
            .where(*self.conditions(types, stream))
            .limit(PAGE)
        )
        if stream is None:
            return page.order_by(log.c.position)
        later = log.c.version > bindparam("after_version", type_=BigInt)
        return page.where(later).order_by(log.c.version)

    def conditions(
        self, types: Collection[str] | None, stream: StreamKey | None
    ) -> list[ColumnElement[bool]]:
        """That an event is of one of ``types``, and of ``stream``."""
        log = self.database.tables.events
        found: list[ColumnElement[bool]] = []
        if types is not None:
            found.append(or_(false(), *(log.c.type == name for name in sorted(types))))
        if stream is not None:
            found.append(log.c.stream_id == stream.stream_id)
            found.append(log.c.stream_type == stream.stream_type)
        return found

    def events(self, *conditions: Any) -> EventRelation:
        """The events that meet ``conditions``, as a relation."""
        log = self.database.tables.events
        rows = select(*(log.c[name] for name in EVENT_COLUMNS)).where(*conditions)
        return self.database.dialect.relation(rows.subquery("events"))
