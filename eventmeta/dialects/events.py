"""SQL over rows with the columns of the log, as projections are given them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnCollection,
    ColumnElement,
    FromClause,
    String,
    Subquery,
    and_,
    cast,
    func,
    or_,
    select,
)

from projections import EVENT_COLUMNS, METADATA_EVENTS, AnyProjection, AnySelect


class EventSQL(ABC):
    """The SQL with which a database reads the data of events."""

    @abstractmethod
    def json_text(self, document: ColumnElement[str], name: str) -> ColumnElement[str]:
        """Return the scalar called ``name`` in the JSON object ``document``, as text, or NULL."""

    def utc_day(self, time: ColumnElement[datetime]) -> ColumnElement[Any]:
        """Return the day of ``time``, in UTC."""
        return func.date(time)

    @abstractmethod
    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Aggregate a group to the ``time`` of its row with the greatest ``version``.

        Only rows that meet ``among`` count.
        """

    @abstractmethod
    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        """Select ``about``, ``key``, ``value``, ``indexed_value`` of each change in the data."""


@dataclass(frozen=True)
class EventRelation:
    """Rows with the columns of the log, and the dialect that reads their data."""

    rows: FromClause
    dialect: EventSQL

    @property
    def c(self) -> ColumnCollection[str, Any]:
        """Return the columns of the log."""
        return self.rows.c

    def of(self, projection: AnyProjection) -> EventRelation:
        """Return only the events that ``projection`` asks for."""
        asked = select(*(self.c[name] for name in EVENT_COLUMNS)).where(concerns(projection, self))
        return EventRelation(asked.subquery("asked"), self.dialect)

    def changes(self) -> Subquery:
        """Return one row for each changed key."""
        return self.select_changes().subquery("changes")

    def field(self, name: str) -> ColumnElement[str]:
        """Return the scalar called ``name`` in the data, as text."""
        return self.dialect.json_text(self.rows.c.data, name)

    def day_of(self, time: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the day of ``time``, in UTC, as a text."""
        return cast(self.dialect.utc_day(time), String(10))

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Aggregate each group to the ``time`` of its row with the greatest ``version``.

        Only rows that meet ``among`` count.
        """
        return self.dialect.time_of_last(time, version, among)

    def select_changes(self) -> AnySelect:
        """Select one row for each changed key."""
        events = self.rows.c
        about = [events[name] for name in _ABOUT if name in events]
        # An app's own event may have "changes" too, with another meaning.
        ours = or_(*(events.type == name for name in sorted(METADATA_EVENTS)))
        return self.dialect.select_changes(self.rows, about).where(ours)


def select_pairs(
    about: Iterable[ColumnElement[Any]], item: Callable[[int], ColumnElement[Any]]
) -> AnySelect:
    """Return ``about`` and the columns of a change, whose JSON array ``item`` takes apart.

    Args:
        about: Columns of the event.
        item: Returns an element of the array: key, value and, if it differs, the indexed value.
    """
    return select(
        *about,
        item(0).label("key"),
        item(1).label("value"),
        func.coalesce(item(2), item(1)).label("indexed_value"),
    )


def concerns(projection: AnyProjection, events: Any) -> ColumnElement[bool]:
    """Return the condition that ``projection`` asks for an event of ``events``.

    The columns ``events.c`` are those of the log.
    """
    kinds = (events.c.type == name for name in sorted(projection.event_types))
    return and_(events.c.stream_type == projection.stream_type, or_(*kinds))


_ABOUT = (
    "stream_type",
    "stream_id",
    "version",
    "position",
    "event_id",
    "type",
    "actor",
    "recorded_at",
)
