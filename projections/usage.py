"""The read model of the tokens that runs have used: a row per event, never changed or removed.

The table has no foreign keys: the tokens were spent even if the items, the session or the user are
gone.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    MetaData,
    String,
    Table,
    cast,
    false,
    select,
    true,
)

from projections.projection import Projection
from projections.relation import AnySelect, Events
from projections.types import BigInt, LongText, SessionId, UtcDateTime

USAGE_RECORDED = "usage_recorded"

_TEXTS = (
    "response_id",
    "model",
    "agent",
    "run_id",
    "user_id",
    "input_tokens_details",
    "output_tokens_details",
    "trace_id",
    "span_id",
)
_NUMBERS = ("user_message_id", "requests", "input_tokens", "output_tokens", "total_tokens")


def usage_projection(metadata: MetaData, name: str = "agent_usage") -> Projection:
    """Return the read model of tokens used, with a table called ``name`` of ``metadata``."""
    return Projection(
        name="usage",
        version=1,
        stream_type="session",
        event_types=frozenset({USAGE_RECORDED}),
        table=_table(metadata, name),
        select=fold_usage,
    )


def _table(metadata: MetaData, name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("id", BigInt, primary_key=True, autoincrement=False),
        Column("session_id", SessionId, nullable=False),
        Column("response_id", SessionId),
        Column("model", LongText),
        Column("agent", LongText),
        Column("run_id", String(36), nullable=False),
        Column("user_id", SessionId),
        Column("user_message_id", BigInt),
        Column("requests", BigInt, nullable=False),
        Column("input_tokens", BigInt, nullable=False),
        Column("output_tokens", BigInt, nullable=False),
        Column("total_tokens", BigInt, nullable=False),
        Column("input_tokens_details", LongText, nullable=False),
        Column("output_tokens_details", LongText, nullable=False),
        Column("trace_id", SessionId),
        Column("span_id", SessionId),
        Column("created_at", UtcDateTime, nullable=False),
        Index(f"idx_{name}_trace_time", "trace_id", "created_at"),
        Index(f"idx_{name}_response", "response_id"),
        Index(f"idx_{name}_session_time", "session_id", "created_at"),
        Index(f"idx_{name}_run", "run_id"),
    )


def fold_usage(events: Events) -> AnySelect:
    """Select a row for each event, whose id is the event's position."""
    columns: list[ColumnElement[Any]] = [
        *(events.field(name).label(name) for name in _TEXTS),
        *(cast(events.field(name), BigInt).label(name) for name in _NUMBERS),
    ]
    return select(
        events.c.position.label("id"),
        events.c.stream_id.label("session_id"),
        *columns,
        events.c.recorded_at.label("created_at"),
        true().label("present"),
        false().label("restarted"),
    ).where(events.c.stream_type == "session", events.c.type == USAGE_RECORDED)
