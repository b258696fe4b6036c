"""The provenance of items: the run of each, by the event that added it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, String, and_, cast, func, select

from eventmeta.core.events import ITEMS_ADDED, ITEMS_REPLACED
from eventmeta.dialects.base import Dialect
from eventmeta.tables.tables import Tables
from projections.items import MAX_NAME, is_one_of, name_of

PROVENANCE = ("run_id", "trace_id", "span_id")
"""The keys of an event's context that become columns of the rows of its items."""


def provenance_by_event(tables: Tables, dialect: Dialect, given: FromClause | None) -> FromClause:
    """Return the items that were added in a context: ``session_id, item_id`` and `PROVENANCE`.

    Args:
        tables: The tables.
        dialect: Their database.
        given: The sessions, by ``session_id``; all sessions if None.
    """
    log = tables.events.c
    columns = [log.stream_id, log.version, log.data, log.context]
    known = and_(
        log.stream_type == "session",
        is_one_of(log.type, (ITEMS_ADDED, ITEMS_REPLACED)),
        log.context.is_not(None),
    )
    if given is None:
        events = select(*columns).where(known)
    else:
        same = log.stream_id == given.c.session_id
        events = dialect.look_up(given, columns, and_(same, known))
    event = events.offset(0).subquery("adding")
    item = dialect.select_item_ids(
        event, [event.c.stream_id, event.c.version, event.c.context]
    ).subquery("added_items")
    # If a database reuses the id of a removed item, the last event counts.
    later = func.row_number().over(
        partition_by=(item.c.stream_id, item.c.item_id), order_by=item.c.version.desc()
    )
    ranked = select(*item.c, later.label("recency")).subquery("ranked").c
    return (
        select(
            ranked.stream_id.label("session_id"),
            ranked.item_id,
            *(named_in(dialect, ranked.context, name).label(name) for name in PROVENANCE),
        )
        .where(ranked.recency == 1)
        .subquery("added_in")
    )


def named_in(dialect: Dialect, context: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """Return the value of ``name`` in a ``context``; NULL if it cannot be a name."""
    return name_of(cast(dialect.json_text(context, name), String(MAX_NAME + 1)))
