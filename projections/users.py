"""The read model of the users that own sessions, each with the document of their metadata.

The row follows the user's own stream. ``metadata`` is the canonical JSON text of one object. Every
event that changes the object holds it as a whole, so that the last event alone determines the row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Function, MetaData, Table, and_, case, func, or_, select

from projections.projection import Projection
from projections.relation import AnySelect, Events
from projections.types import LongText, SessionId, UtcDateTime

USER_CREATED = "user_created"
USER_DELETED = "user_deleted"
USER_EVENTS = frozenset({USER_CREATED, "metadata_set", "metadata_deleted", USER_DELETED})


def users_projection(metadata: MetaData, name: str = "agent_users") -> Projection:
    """Return the read model of users, with a table called ``name`` of ``metadata``."""
    return Projection(
        name="users",
        version=1,
        stream_type="user",
        event_types=USER_EVENTS,
        table=_table(metadata, name),
        select=fold_users,
        kept=frozenset({"created_at"}),
    )


def _table(metadata: MetaData, name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("user_id", SessionId, primary_key=True),
        Column("metadata", LongText),
        Column("created_at", UtcDateTime, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
    )


def fold_users(events: Events) -> AnySelect:
    """Select each user as of the last of ``events``.

    ``created_at`` is the time of the first event since the user's last deletion.

    Each event is compared with its neighbours only, as in `fold_metadata`.
    """
    user = events.c.stream_id

    def beside(neighbour: Function[Any]) -> Any:
        return neighbour.over(partition_by=user, order_by=events.c.version)

    row = (
        select(
            user.label("user_id"),
            events.c.type,
            events.c.version,
            events.c.recorded_at,
            events.field("metadata").label("metadata"),
            beside(func.lag(events.c.type)).label("type_before"),
            beside(func.lead(events.c.version)).label("next_version"),
        )
        .where(
            events.c.stream_type == "user",
            or_(*(events.c.type == name for name in sorted(USER_EVENTS))),
        )
        .subquery("events_in_order")
        .c
    )
    is_deletion = row.type == USER_DELETED
    follows_nothing = or_(row.type_before.is_(None), row.type_before == USER_DELETED)
    begins = and_(row.type != USER_DELETED, follows_nothing)

    is_last = row.next_version.is_(None)

    def last(column: Any) -> Any:
        return func.max(case((is_last, column)))

    return select(
        row.user_id,
        last(row.metadata).label("metadata"),
        events.time_of_last(row.recorded_at, row.version, begins).label("created_at"),
        func.max(case((is_last, row.recorded_at)), type_=UtcDateTime()).label("updated_at"),
        (last(row.type) != USER_DELETED).label("present"),
        (func.count(case((is_deletion, 1))) > 0).label("restarted"),
    ).group_by(row.user_id)
