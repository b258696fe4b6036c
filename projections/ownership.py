"""The owner of each stream, as the log determines it.

The heads of the streams hold the owner, because the owner is compared while the head is locked. A
session belongs to its owner from the last assignment on. The empty text says that the owner was
deleted, so that nobody can claim the session. The stream of a user belongs to that user for as long
as the user exists.
"""

from __future__ import annotations

from sqlalchemy import and_, case, cast, func, literal, null, or_, select

from projections.relation import AnySelect, Events
from projections.types import BigInt
from projections.users import USER_DELETED, USER_EVENTS

USER_ASSIGNED = "user_assigned"

NOBODY = ""
"""The owner of a session whose owner was deleted."""

HANDOVER = "$handover"
"""The stream type of a row among the heads that is not a head but says where a session begins.

The owner of a session that was handed over without its history sees it from the row's version on.
"""


def fold_owners(events: Events) -> AnySelect:
    """Select ``stream_id, stream_type, user_id`` of every stream with an owner after ``events``."""
    event = events.c
    assigned = and_(event.stream_type == "session", event.type == USER_ASSIGNED)
    of_user = and_(
        event.stream_type == "user", or_(*(event.type == name for name in sorted(USER_EVENTS)))
    )
    ranked = (
        select(
            event.stream_id,
            event.stream_type,
            case(
                (event.stream_type == "session", func.coalesce(events.field("user_id"), NOBODY)),
                (event.type == USER_DELETED, null()),
                else_=event.stream_id,
            ).label("user_id"),
            func.row_number()
            .over(
                partition_by=(event.stream_id, event.stream_type),
                order_by=event.version.desc(),
            )
            .label("recency"),
        )
        .where(or_(assigned, of_user))
        .subquery("ranked")
    )
    row = ranked.c
    return select(row.stream_id, row.stream_type, row.user_id).where(
        row.recency == 1, row.user_id.is_not(None)
    )


def fold_handovers(events: Events) -> AnySelect:
    """Select ``stream_id, stream_type, version``: where each session that was handed over begins.

    The new owner sees the session from that version on.

    An assignment without ``with_history`` changes nothing. An assignment with ``with_history`` and
    a version ``since`` hands on the events that the owner before could see, which begin at
    ``since``. Without ``since``, the assignment itself is the first event that the new owner sees.
    """
    event = events.c
    since = func.coalesce(cast(events.field("since"), BigInt), event.version)
    ranked = (
        select(
            event.stream_id,
            since.label("version"),
            func.row_number()
            .over(partition_by=event.stream_id, order_by=event.version.desc())
            .label("recency"),
        )
        .where(
            event.stream_type == "session",
            event.type == USER_ASSIGNED,
            events.field("with_history").is_not(None),
        )
        .subquery("ranked")
    )
    row = ranked.c
    return select(row.stream_id, literal(HANDOVER).label("stream_type"), row.version).where(
        row.recency == 1
    )
