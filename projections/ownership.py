"""Whose each stream is, by the log.

The heads of the streams keep it, for an owner is compared under the lock of the head. A session
is its owner's from the last assignment on; the empty text says that the owner was deleted, so that
nobody can claim the session. The stream of a user is the user's own for as long as there is one.
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
"""The stream type of a row among the heads that is none: its version is where a session begins.

The owner of a session that was handed over without its history sees it from that version on.
"""


def fold_owners(events: Events) -> AnySelect:
    """``stream_id, stream_type, user_id`` of every stream that has an owner after ``events``."""
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
    """``stream_id, stream_type, version`` from which on sessions that were handed over are seen.

    An assignment that does not say ``with_history`` changes nothing. One that says it with the
    version ``since`` hands on what was seen before it; without, it is the first that is seen.
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
