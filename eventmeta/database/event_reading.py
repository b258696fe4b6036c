"""Reading the log: its events in order, up to the horizon."""

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
    """The log of one database, for readers.

    Attributes:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    async def horizon(self) -> int:
        """Return the highest position below which no event can appear any more.

        A reader that reads up to the horizon, and continues from there, never skips an event.

        Raises:
            StandbyServer: The server is a standby, which cannot tell the horizon.
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
        """Yield the events after position ``after``, in order, up to the horizon of the start.

        The events of one stream are read beyond the horizon too: the lock on the stream's head
        makes them visible in order.

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
        """Return the version of the event at ``position``; 0 if it is not one of ``stream``."""
        if not position:
            return 0
        log = self.database.tables.events
        query = select(log.c.version).where(log.c.position == bindparam("position"))
        query = query.where(*self.conditions(None, stream))
        rows = await self.database.fetch(self.database.dialect.compile(query)(position=position))
        return int(rows[0][0]) if rows else 0

    def _page(self, types: Collection[str] | None, stream: StreamKey | None) -> AnySelect:
        """Return the query for the next events: ``after``, ``until``, ``after_version`` → events.

        The events of a stream are found by the stream's key; otherwise each page would read the
        whole stream.
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
        """Return the conditions that an event is of one of ``types``, and in ``stream``."""
        log = self.database.tables.events
        found: list[ColumnElement[bool]] = []
        if types is not None:
            found.append(or_(false(), *(log.c.type == name for name in sorted(types))))
        if stream is not None:
            found.append(log.c.stream_id == stream.stream_id)
            found.append(log.c.stream_type == stream.stream_type)
        return found

    def events(self, *conditions: Any) -> EventRelation:
        """Return the events that meet ``conditions``, as a relation."""
        log = self.database.tables.events
        rows = select(*(log.c[name] for name in EVENT_COLUMNS)).where(*conditions)
        return self.database.dialect.relation(rows.subquery("events"))
