"""The shapes of relations of events and of items: what every projection is given."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from sqlalchemy import ColumnCollection, ColumnElement, FromClause, Select, Subquery

AnySelect: TypeAlias = "Select[*tuple[Any, ...]]"
"""A Select of any columns."""

EVENT_COLUMNS: tuple[str, ...] = (
    "position",
    "stream_type",
    "stream_id",
    "version",
    "event_id",
    "type",
    "data",
    "actor",
    "context",
    "recorded_at",
)
"""The columns of the log, and so of every relation of events."""


class Events(Protocol):
    """A relation of events: the whole log, a part of it, or a batch that is just being appended."""

    @property
    def c(self) -> ColumnCollection[str, Any]:
        """The columns named by ``EVENT_COLUMNS``."""
        ...

    def changes(self) -> Subquery:
        """One row per key that a metadata event changed.

        The columns of the event (without ``data`` and ``context``) and ``key``, ``value`` (the
        canonical JSON text, NULL where the key was removed) and ``indexed_value`` (see
        ``projections.metadata``). How the payload is taken apart is the database's own affair.
        """
        ...

    def field(self, name: str) -> ColumnElement[str]:
        """The scalar called ``name`` in the payload, as text; NULL where it is null or missing."""
        ...

    def day_of(self, time: ColumnElement[Any]) -> ColumnElement[Any]:
        """The day of a ``recorded_at``, in UTC, as a text such as ``2026-01-31``."""
        ...

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Of each group, the ``time`` of the row with the greatest ``version``; an aggregate.

        Only rows that meet ``among`` count; NULL where none does. The greatest time would not do:
        where a clock was wrong, the times of a stream go back.
        """
        ...


class Event(Protocol):
    """One event, as a projection in plain Python is given it: a row of the log."""

    @property
    def position(self) -> int:
        """Its place in the log."""
        ...

    @property
    def stream_type(self) -> str:
        """``"session"`` or ``"user"``."""
        ...

    @property
    def stream_id(self) -> str:
        """The session or the user."""
        ...

    @property
    def version(self) -> int:
        """Its place in the stream."""
        ...

    @property
    def event_id(self) -> str:
        """The UUID under which it was recorded."""
        ...

    @property
    def type(self) -> str:
        """What happened."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """The facts."""
        ...

    @property
    def actor(self) -> str | None:
        """Who did it, if known."""
        ...

    @property
    def context(self) -> Mapping[str, Any]:
        """Reason, trace id and the like."""
        ...

    @property
    def recorded_at(self) -> datetime:
        """When, in UTC."""
        ...


MESSAGE_COLUMNS: tuple[str, ...] = (
    "id",
    "session_id",
    "created_at",
    "item",
    "run_id",
    "trace_id",
    "span_id",
    "turn_before",
    "parent_before",
)
"""The columns of every relation of items, however little is known of them."""


class Messages(Protocol):
    """A relation of items: of whole sessions, or those that are just being added to some.

    What a projection is given has also ``type``, ``role``, ``part``, ``turn`` and
    ``parent_raw_event_id``, as ``projections.items.in_turns`` finds them.

    Their order is that of ``created_at``, ``id``. ``item`` is the item in the database's own form,
    NULL where it is no JSON object; what no text can hold (NUL, half a character) is spelled out
    in it. ``run_id``, ``trace_id`` and ``span_id`` are from the context in which it was added.
    ``turn_before`` and ``parent_before`` are the state in which the relation begins: the number
    and the id of the user's last message before it, 0 and NULL for whole sessions.
    """

    @property
    def rows(self) -> FromClause:
        """The rows, with the columns named by ``MESSAGE_COLUMNS``."""
        ...

    def string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field ``name`` of an item if it holds a string, else NULL."""
        ...

    def text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field as text: a string as it is, others as JSON text, NULL where it is null."""
        ...

    def json(self, item: ColumnElement[Any], name: str | None = None) -> ColumnElement[Any]:
        """The field, or the whole item, as JSON text; NULL where it is null or missing."""
        ...
