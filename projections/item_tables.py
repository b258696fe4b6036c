"""Columns that the tables of items share: the session, the turn, and the run of each row.

The key of a row is the id of the message it comes from, so that a rebuild gives exactly the same
rows.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    select,
)

from projections.relation import AnySelect
from projections.types import SessionId, index_of_known

_LINKS = ("parent_raw_event_id", "turn", "run_id", "trace_id", "span_id", "created_at")


def item_table(metadata: MetaData, messages: Table, name: str, *own: Column[Any]) -> Table:
    """Return a table called ``name``: the columns that all such tables share, and its ``own``."""
    message = ForeignKey(messages.c.id, ondelete="CASCADE")
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("session_id", SessionId, nullable=False),
        Column("raw_event_id", Integer, message, nullable=False),
        Column("type", String(255), nullable=False),
        *own,
        Column("parent_raw_event_id", Integer),
        Column("turn", Integer, nullable=False),
        Column("run_id", String(255)),
        Column("trace_id", String(255)),
        Column("span_id", String(255)),
        Column("created_at", messages.c.created_at.type, nullable=False),
        Index(f"idx_{name}_session_time", "session_id", "created_at"),
        index_of_known(f"idx_{name}_trace_time", "trace_id", "created_at"),
        index_of_known(f"idx_{name}_span_time", "span_id", "created_at"),
        Index(f"idx_{name}_session_turn", "session_id", "turn"),
        Index(f"idx_{name}_raw_event", "raw_event_id"),
    )


def select_item_rows(row: Any, *own: ColumnElement[Any]) -> AnySelect:
    """Select the columns of such a table, in their order, with its ``own``."""
    common = (row.id, row.session_id, row.id.label("raw_event_id"), row.type)
    return select(*common, *own, *(row[name] for name in _LINKS))
