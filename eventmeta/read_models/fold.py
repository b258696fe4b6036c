"""Projections put to use: the one Select of each, as the statements that keep its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Delete, Insert, select

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.events import EventRelation
from eventmeta.tables.tables import Tables
from projections import USER_DELETED, AnySelect, Events, Projection


def asked_for(tables: Tables, events: EventRelation) -> Iterator[tuple[Projection, EventRelation]]:
    """Each read model that every append maintains, with those of ``events`` that it asks for.

    The built-in ones tell them apart themselves, as part of what they do anyway.
    """
    for projection in tables.projections:
        own = projection in tables.inline
        yield projection, events.of(projection) if own else events


def delete_rows(projection: Projection, dialect: Dialect, events: Events) -> Delete:
    """Remove the rows that ``events`` removed, including those they made anew since.

    To run before `upsert_rows`; of no effect unless some event removes something.
    """
    fold = projection.select(events).subquery("fold")
    keys = [fold.c[column.name] for column in projection.table.primary_key]
    gone = select(*keys).where(fold.c.restarted).subquery("gone")
    return dialect.delete_matching(projection.table, gone)


def upsert_rows(projection: Projection, dialect: Dialect, events: Events) -> Insert:
    """Write the rows that exist after ``events``."""
    table = projection.table
    fold = projection.select(events).subquery("fold")
    columns = [column.name for column in table.columns]
    source = select(*(fold.c[name] for name in columns)).where(fold.c.present)
    # In the order of the key, so that two transactions cannot wait for each other.
    source = source.order_by(*(fold.c[column.name] for column in table.primary_key))
    return dialect.upsert(table, columns, source, projection.overwritten)


def select_rows(projection: Projection, events: Events) -> AnySelect:
    """The rows of the read model as they are after ``events``, read without its table."""
    fold = projection.select(events).subquery("fold")
    columns = [fold.c[column.name] for column in projection.table.columns]
    return select(*columns).where(fold.c.present)


def can_remove(event_type: str, data: Mapping[str, Any]) -> bool:
    """Whether such an event takes anything out of a read model."""
    return event_type == USER_DELETED or any(
        change[1] is None for change in data.get("changes", ())
    )
