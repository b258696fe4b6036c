"""SQL statements that keep a projection's table, made of its Select."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Delete, Insert, select

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.events import EventRelation
from eventmeta.tables.tables import Tables
from projections import USER_DELETED, AnySelect, Events, Projection


def asked_for(tables: Tables, events: EventRelation) -> Iterator[tuple[Projection, EventRelation]]:
    """Yield each read model that every append maintains, with the ``events`` that it asks for.

    A built-in read model gets all of ``events``: its Select filters them anyway.
    """
    for projection in tables.projections:
        own = projection in tables.inline
        yield projection, events.of(projection) if own else events


def delete_rows(projection: Projection, dialect: Dialect, events: Events) -> Delete:
    """Return the DELETE for the rows that ``events`` remove, even if they create them again.

    Run it before `upsert_rows`. It has no effect unless an event removes something.
    """
    fold = projection.select(events).subquery("fold")
    keys = [fold.c[column.name] for column in projection.table.primary_key]
    gone = select(*keys).where(fold.c.restarted).subquery("gone")
    return dialect.delete_matching(projection.table, gone)


def upsert_rows(projection: Projection, dialect: Dialect, events: Events) -> Insert:
    """Return the INSERT that writes the rows that exist after ``events``."""
    table = projection.table
    fold = projection.select(events).subquery("fold")
    columns = [column.name for column in table.columns]
    source = select(*(fold.c[name] for name in columns)).where(fold.c.present)
    # In the order of the key, which prevents deadlocks between two transactions.
    source = source.order_by(*(fold.c[column.name] for column in table.primary_key))
    return dialect.upsert(table, columns, source, projection.overwritten)


def select_rows(projection: Projection, events: Events) -> AnySelect:
    """Return the query for the read model's rows after ``events``, without reading its table."""
    fold = projection.select(events).subquery("fold")
    columns = [fold.c[column.name] for column in projection.table.columns]
    return select(*columns).where(fold.c.present)


def can_remove(event_type: str, data: Mapping[str, Any]) -> bool:
    """Return whether an event of this type and data may remove rows of a built-in read model."""
    return event_type == USER_DELETED or any(
        change[1] is None for change in data.get("changes", ())
    )
