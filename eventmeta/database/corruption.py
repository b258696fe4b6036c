"""Naming the corrupt event when a fold of the log fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from eventmeta.core.database_errors import DatabaseFailure
from eventmeta.core.events import StreamKey
from eventmeta.database.event_reading import LogReading


@asynccontextmanager
async def naming_corruption(
    log: LogReading, stream: StreamKey | None = None
) -> AsyncGenerator[None]:
    """Raise `CorruptEvent` if the database fails in the block because an event is corrupt.

    The database says only that something is not JSON. So after a failure the events are read one
    by one, to find the corrupt one.

    Args:
        log: The log that the block folds.
        stream: The stream that the block folds; the whole log if None.
    """
    try:
        yield
    except DatabaseFailure as error:
        if type(error) is DatabaseFailure:
            async for _ in log.read_all(stream=stream):
                pass
        raise
