"""The relations of events and of items that projections are given."""

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
    """A relation of events: the whole log, a part of it, or a batch that is being appended."""

    @property
    def c(self) -> ColumnCollection[str, Any]:
        """Return the columns named by ``EVENT_COLUMNS``."""
        ...

    def changes(self) -> Subquery:
        """Return one row for each key that a metadata event changed.

        The columns are those of the event (without ``data`` and ``context``) and ``key``, ``value``
        (the canonical JSON text, NULL if the key was removed) and ``indexed_value`` (see
        ``projections.metadata``). How the data is read depends on the database.
        """
        ...

    def field(self, name: str) -> ColumnElement[str]:
        """Return the scalar called ``name`` in the data, as text; NULL if it is null or missing."""
        ...

    def day_of(self, time: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the day of a ``recorded_at``, in UTC, as a text such as ``2026-01-31``."""
        ...

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Aggregate each group to the ``time`` of the row with the greatest ``version``.

        Only rows that meet ``among`` count; the result is NULL if none does. The greatest time
        would be wrong: if a clock was wrong, the times of a stream go back.
        """
        ...


class Event(Protocol):
    """A row of the log, as a projection in plain Python is given it."""

    @property
    def position(self) -> int:
        """Return the event's place in the log."""
        ...

    @property
    def stream_type(self) -> str:
        """Return ``"session"`` or ``"user"``."""
        ...

    @property
    def stream_id(self) -> str:
        """Return the id of the session or the user."""
        ...

    @property
    def version(self) -> int:
        """Return the event's place in the stream."""
        ...

    @property
    def event_id(self) -> str:
        """Return the UUID under which the event was recorded."""
        ...

    @property
    def type(self) -> str:
        """Return the name of what happened."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """Return the facts."""
        ...

    @property
    def actor(self) -> str | None:
        """Return the name of the actor, if known."""
        ...

    @property
    def context(self) -> Mapping[str, Any]:
        """Return the reason, the trace id and the like."""
        ...

    @property
    def recorded_at(self) -> datetime:
        """Return the time at which the event was recorded, in UTC."""
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
"""The columns of every relation of items; `Messages` may have more."""


class Messages(Protocol):
    """A relation of items: those of whole sessions, or those that are being added to some sessions.

    The relation that a projection is given has also ``type``, ``role``, ``part``, ``turn`` and
    ``parent_raw_event_id``, as ``projections.items.in_turns`` finds them.

    Items are in the order of ``created_at``, ``id``. ``item`` is the item in the database's own
    form, NULL if it is not a JSON object; a character that a text cannot hold (NUL, a lone
    surrogate) is in it as the text of its escape. ``run_id``, ``trace_id`` and ``span_id`` are from
    the context in which it was added. ``turn_before`` and ``parent_before`` are the state in which
    the relation begins: the number and the id of the user's last message before it, 0 and NULL for
    whole sessions.
    """

    @property
    def rows(self) -> FromClause:
        """Return the rows, with the columns named by ``MESSAGE_COLUMNS``."""
        ...

    def string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field ``name`` of an item if it holds a string, else NULL."""
        ...

    def text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field as text: a string as it is, other values as JSON text, null as NULL."""
        ...

    def json(self, item: ColumnElement[Any], name: str | None = None) -> ColumnElement[Any]:
        """Return the field, or the whole item, as JSON text; NULL if it is null or missing."""
        ...
