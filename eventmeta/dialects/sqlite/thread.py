"""Work in the thread of an SQLite connection."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec

from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.statement import T

P = ParamSpec("P")


async def run_in_connection_thread(
    work: Callable[Concatenate[sqlite3.Connection, P], T],
    connection: Any,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``work`` in the thread of an aiosqlite connection, on the connection of the stdlib.

    Rows and texts are then as the stdlib makes them, even if the app has set other factories.

    Each of aiosqlite's public methods is one hop for one statement; ``_execute`` is the method on
    which they are built. When a cancellation comes through, the thread has nothing left to do, and
    nothing to tell an event loop that may be closed by then.
    """
    try:
        result: T = await connection._execute(_plainly, work, connection._conn, *args, **kwargs)
        return result
    except asyncio.CancelledError:
        with suppress(ValueError):  # the connection was closed meanwhile
            await run_to_completion(connection._execute(_idle))
        raise


def _plainly(
    work: Callable[Concatenate[sqlite3.Connection, P], T],
    connection: sqlite3.Connection,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    rows, texts = connection.row_factory, connection.text_factory
    if rows is None and texts is str:
        return work(connection, *args, **kwargs)
    connection.row_factory, connection.text_factory = None, str
    try:
        return work(connection, *args, **kwargs)
    finally:
        connection.row_factory, connection.text_factory = rows, texts


def _idle() -> None:
    pass
