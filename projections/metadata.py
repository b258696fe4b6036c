"""The current metadata of every session: entity, attribute, value.

``value`` is the canonical JSON text of the value. ``indexed_value`` is what equality is asked of,
in an index of fixed width: the same text with numbers in one spelling (``1.0`` as ``1``) when that
is short, else a hash of it.

The table has no foreign key to the sessions: a cascade would change it behind the log's back.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Index, MetaData, String, Table, case, func, select

from projections.projection import Projection
from projections.relation import AnySelect, Events
from projections.types import LongText, SessionId, UtcDateTime

METADATA_EVENTS = frozenset({"metadata_set", "metadata_deleted", "session_cleared"})


def metadata_projection(metadata: MetaData, name: str = "agent_sessions_metadata") -> Projection:
    """The metadata read model, kept in a table called ``name`` of ``metadata``."""
    return Projection(
        name="metadata",
        version=1,
        event_types=METADATA_EVENTS,
        table=_table(metadata, name),
        select=fold_metadata,
        kept=frozenset({"created_at"}),
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
        Index(f"idx_{name}_key_value", "key", "indexed_value", "session_id"),
    )


def fold_metadata(events: Events) -> AnySelect:
    """The last value of every key; ``created_at`` is of the first one since its last removal."""
    change = events.changes()
    same_key = (change.c.stream_id, change.c.key)
    removal = case((change.c.value.is_(None), change.c.version), else_=0)
    ranked = (
        select(
            change,
            func.row_number()
            .over(partition_by=same_key, order_by=change.c.version.desc())
            .label("recency"),
            func.max(removal).over(partition_by=same_key).label("removed"),
        )
        .where(change.c.stream_type == "session")
        .subquery("ranked")
    )
    row = ranked.c

    def latest(column: Any) -> Any:
        return func.max(case((row.recency == 1, column)))

    return select(
        row.stream_id.label("session_id"),
        row.key,
        latest(row.value).label("value"),
        latest(row.indexed_value).label("indexed_value"),
        func.min(case((row.version > row.removed, row.recorded_at)), type_=UtcDateTime()).label(
            "created_at"
        ),
        func.max(row.recorded_at, type_=UtcDateTime()).label("updated_at"),
        latest(row.value).is_not(None).label("present"),
        (func.max(row.removed) > 0).label("restarted"),
    ).group_by(row.stream_id, row.key)
