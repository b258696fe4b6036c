"""Appends that also run projections in plain Python, in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.events import RecordedEvent
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Program
from eventmeta.log.batch import append_batch
from eventmeta.log.commands import Command
from eventmeta.log.pending_event import Outcome
from eventmeta.log.statements import AppendStatements
from eventmeta.read_models.apply import apply_events
from projections import AppliedProjection


async def append_and_apply(
    commands: Sequence[Command],
    sql: AppendStatements,
    applied: Sequence[AppliedProjection],
    dialect: Dialect,
    connection: AsyncConnection,
    *,
    alone: bool,
) -> list[Outcome]:
    """Carry out ``commands`` on a connection of SQLAlchemy's, and apply the recorded events.

    Args:
        commands: The commands.
        sql: The statements.
        applied: The projections to apply.
        dialect: The dialect of the database.
        connection: The connection in whose transaction all of this happens.
        alone: See `apply_events`.

    Raises:
        ProjectionFailed: One of ``applied`` failed; roll the transaction back.
    """
    events: list[RecordedEvent] = []
    outcomes = await dialect.write_within(connection, append_batch(commands, sql, events))
    events.sort(key=lambda event: event.position)
    for projection in applied:
        asked = [
            event
            for event in events
            if event.type in projection.event_types and event.stream_type == projection.stream_type
        ]
        await apply_events(projection, dialect, connection, asked, projection.tables, alone=alone)
    return outcomes


def nothing() -> Program[None]:
    """Return a program without statements, which only begins a transaction."""
    yield from ()
