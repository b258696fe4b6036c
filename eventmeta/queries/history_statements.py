"""The statements that read the past of one kind of stream, compiled at first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, bindparam, or_, select

from eventmeta.core.events import StreamType
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.queries.moments import last_version
from eventmeta.queries.ownership import OwnerFilter
from eventmeta.read_models.fold import select_rows
from eventmeta.tables.tables import Tables
from projections import EVENT_COLUMNS, METADATA_EVENTS, USER_DELETED, AnySelect, Projection
from projections.types import BigInt, SessionId

LIMIT = bindparam("limit", type_=BigInteger())

_STREAM_ID: ColumnElement[str] = bindparam("stream_id", type_=SessionId)

KEYED_EVENTS = METADATA_EVENTS | {USER_DELETED}
"""The types of the events that change metadata."""


@dataclass(frozen=True)
class StreamStatements:
    """The statements that read the streams of one type, limited by ``ownership``.

    Each property that is a statement says what the statement does, then its parameters → the
    columns of its rows.
    """

    tables: Tables
    dialect: Dialect
    ownership: OwnerFilter
    stream_type: StreamType

    @cached_property
    def metadata_as_of(self) -> dict[str, Statement]:
        """Fold the metadata from the log up to a bound: ``stream_id``, ``bound`` → metadata.

        The rows are ``key, value`` for a session, and the one document for a user. There is one
        statement for each column of the log that can be the bound.
        """
        log = self.tables.events
        projection, columns = self._metadata
        statements: dict[str, Statement] = {}
        for name in ("version", "position", "recorded_at"):
            bound = bindparam("bound", type_=log.c[name].type)
            end = log.c.version <= self._last_version(bound)
            past = end if name == "recorded_at" else log.c[name] <= bound
            events = self._events(past, *self._seen_at(name, bound))
            fold = select_rows(
                projection, self.dialect.relation(events.subquery("events"))
            ).subquery("state")
            statements[name] = self.dialect.compile(select(*(fold.c[name] for name in columns)))
        return statements

    def _last_version(self, moment: ColumnElement[Any]) -> ColumnElement[int]:
        return last_version(
            self.tables.events, moment, stream_id=_STREAM_ID, stream_type=self.stream_type
        )

    def _seen_at(self, column: str, bound: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        if self.stream_type == "user":
            return []
        if column == "recorded_at":
            return self.ownership.at(_STREAM_ID, "version", self._last_version(bound))
        return self.ownership.at(_STREAM_ID, column, bound)

    @property
    def _metadata(self) -> tuple[Projection, tuple[str, ...]]:
        if self.stream_type == "session":
            return self.tables.session_metadata, ("key", "value")
        return self.tables.users, ("metadata",)

    @cached_property
    def events(self) -> Statement:
        """Select events after a version, in order: ``stream_id``, ``after``, ``limit`` → events."""
        later = self._events(*self._later)
        return self.dialect.compile(later.order_by(self.tables.events.c.version).limit(LIMIT))

    @cached_property
    def events_of_key(self) -> Statement:
        """Select events that changed a key: ``stream_id``, ``after``, ``limit``, ``key`` → events.

        Only events after the version ``after`` are selected, in order.
        """
        events = self._events(*self._later).subquery("events")
        kinds = METADATA_EVENTS if self.stream_type == "session" else KEYED_EVENTS
        # An event changes a key once, so a join yields each event once. A semi-join would go
        # through the whole stream for each event.
        change = (
            self.dialect.select_changes(events, [events.c[name] for name in EVENT_COLUMNS])
            .where(or_(*(events.c.type == name for name in sorted(kinds))))
            .subquery("changes")
        )
        of_key = select(*(change.c[name] for name in EVENT_COLUMNS)).where(
            change.c.key == bindparam("key")
        )
        return self.dialect.compile(of_key.order_by(change.c.version).limit(LIMIT))

    @property
    def _later(self) -> list[ColumnElement[bool]]:
        log = self.tables.events
        seen = self.ownership.since(log) if self.stream_type == "session" else []
        return [log.c.version > bindparam("after", type_=BigInt), *seen]

    def _events(self, *conditions: ColumnElement[bool]) -> AnySelect:
        log = self.tables.events
        return select(*(log.c[name] for name in EVENT_COLUMNS)).where(
            log.c.stream_id == _STREAM_ID,
            log.c.stream_type == self.stream_type,
            *self.ownership.of_stream(self.stream_type, _STREAM_ID),
            *conditions,
        )
