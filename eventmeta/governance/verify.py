"""Comparing the read models with the log and the items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sqlalchemy import select

from eventmeta.dialects.statement import recordset
from eventmeta.log.event_log import EventLog
from eventmeta.projector.target import live_target
from eventmeta.read_models.comparison import Comparison, Difference, comparisons
from eventmeta.read_models.item_relations import ItemRelations
from eventmeta.read_models.spelling import spelled_out, unreadable
from eventmeta.store.metadata_store import MetadataStore


async def verify_projection(store: MetadataStore) -> list[Difference]:
    """Compare each read model, and the owner of every session, with the fold of the log or items.

    Asynchronous projections are compared with the log up to their checkpoint. Projections in plain
    Python cannot be compared.

    Returns:
        The rows that differ. There are none unless someone wrote to a table by hand, or upstream's
        own class wrote to a session whose conversation is kept turn by turn.
    """
    log = store.log
    await log.database.opening.connect(create=False)
    tables = log.database.tables
    items = ItemRelations(tables, log.database.dialect)
    query = unreadable(log.database.dialect, items.stored()) if tables.item_projections else None
    unread = spelled_out(() if query is None else await log.database.scan(query))
    items, spelled = replace(items, spelled=bool(unread)), recordset(unread)
    compared = [
        *comparisons(tables, log.events()),
        *(
            Comparison.of_table(each.name, each.table, each.select(items.of_sessions()))
            for each in tables.item_projections
        ),
        *_asynchronous(log),
    ]
    found: list[Difference] = []
    for comparison in compared:
        rows = await log.database.scan(comparison.differences(), spelled=spelled)
        found += comparison.named(rows)
    return found


def _asynchronous(log: EventLog) -> Iterator[Comparison]:
    """Yield a comparison for each asynchronous projection, without the events that are parked."""
    checkpoints, events = log.database.tables.checkpoints.c, log.database.tables.events.c
    for projection in log.registry.asynchronous:
        target = live_target(projection, log.database.tables, log.database.dialect)
        if target.folded is None:
            continue
        reached = (
            select(checkpoints.position)
            .where(checkpoints.projection == projection.name, checkpoints.state == target.state)
            .scalar_subquery()
        )
        applied = target.relation(events.position <= reached, ~target.is_parked)
        yield Comparison.of_table(projection.name, target.tables[0], target.rows(applied))
