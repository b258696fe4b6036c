"""The read model of the current metadata of every session, a row for each key.

``value`` is the canonical JSON text of the value. ``indexed_value`` is the column that searches for
equal values compare, through an index of fixed width: the same text with numbers in one spelling
(``1.0`` as ``1``) if it is short, else a hash of that text.

The table has no foreign key to the sessions: a cascade would change the table without an event in
the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Column,
    Function,
    Index,
    MetaData,
    String,
    Table,
    and_,
    case,
    func,
    or_,
    select,
)

from projections.projection import KnownEvent, Projection
from projections.relation import AnySelect, Events
from projections.types import LongText, SessionId, UtcDateTime

_KEY = ("stream_id", "key")
_VALUE = ("value", "indexed_value")

METADATA_EVENTS = frozenset({"metadata_set", "metadata_deleted", "session_cleared"})


def metadata_projection(metadata: MetaData, name: str = "agent_sessions_metadata") -> Projection:
    """Return the metadata read model, with a table called ``name`` of ``metadata``."""
    return Projection(
        name="metadata",
        version=1,
        stream_type="session",
        event_types=METADATA_EVENTS,
        table=_table(metadata, name),
        select=fold_metadata,
        kept=frozenset({"created_at"}),
        fold=fold_known,
    )


def _table(metadata: MetaData, name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("session_id", SessionId, primary_key=True),
        Column("key", String(255), primary_key=True),
        Column("value", LongText, nullable=False),
        Column("indexed_value", String(64), nullable=False),
        Column("created_at", UtcDateTime, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        # The key is not the first column: a planner that takes the table for a small one would look
        # up a session's key in this index, among those of all sessions.
        Index(f"idx_{name}_key_value", "indexed_value", "key", "session_id"),
    )


def fold_metadata(events: Events) -> AnySelect:
    """Select the last value of every key, and the time at which the key last came into being.

    ``created_at`` is the time of the key's first change since its last removal: that is the last
    change that follows no other or a removal. Each change is compared with its neighbours only: on
    MariaDB, the steps for an aggregate over a whole window grow with the square of its rows.
    """
    change = events.changes()

    def beside(neighbour: Function[Any]) -> Any:
        same_key = [change.c[name] for name in _KEY]
        return neighbour.over(partition_by=same_key, order_by=change.c.version)

    row = (
        select(
            *(change.c[name] for name in (*_KEY, *_VALUE, "version", "recorded_at")),
            beside(func.lag(change.c.value)).label("value_before"),
            beside(func.lead(change.c.version)).label("next_version"),
        )
        .where(change.c.stream_type == "session")
        .subquery("changes_in_order")
        .c
    )
    is_last = row.next_version.is_(None)
    begins = and_(row.value.is_not(None), row.value_before.is_(None))
    is_removal = row.value.is_(None)

    def last(column: Any) -> Any:
        return func.max(case((is_last, column)))

    return (
        select(
            row.stream_id.label("session_id"),
            row.key,
            last(row.value).label("value"),
            last(row.indexed_value).label("indexed_value"),
            events.time_of_last(row.recorded_at, row.version, begins).label("created_at"),
            func.max(case((is_last, row.recorded_at)), type_=UtcDateTime()).label("updated_at"),
            last(row.value).is_not(None).label("present"),
            (func.count(case((is_removal, 1))) > 0).label("restarted"),
        )
        .where(or_(is_last, begins, is_removal))
        .group_by(row.stream_id, row.key)
    )


def fold_known(events: Iterable[KnownEvent]) -> list[tuple[Any, ...]]:
    """Return the rows that `fold_metadata` yields for events that only set keys."""
    rows: dict[tuple[str, str], tuple[Any, ...]] = {}
    for stream_id, data, recorded_at in events:
        for key, value, *other in data["changes"]:
            earlier = rows.get((stream_id, key))
            created_at = earlier[4] if earlier else recorded_at
            indexed_value = other[0] if other else value
            row = (stream_id, key, value, indexed_value, created_at, recorded_at)
            rows[stream_id, key] = row
    return [rows[key] for key in sorted(rows)]
