"""The shape of a relation of events: what every projection is given."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from sqlalchemy import ColumnCollection, Select, Subquery

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
