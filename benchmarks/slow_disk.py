"""A slower disk than this one: each commit waits, the same for all peers.

SQLite: every connection that is opened while the delay is in force sleeps when it is told to COMMIT
what it has written, or to write outside a transaction, as it would in its fsync: it holds the lock
for writing meanwhile, and no Python lock. The statements of such connections are traced, which
costs all peers some microseconds each. Waits of checkpoints, and of savepoints that are the
outermost transaction, are not simulated.

PostgreSQL: its own setting ``commit_delay``, with ``commit_siblings = 0``, so that whoever flushes
the log to disk waits first, and holds the lock of that flush meanwhile. Others who commit in the
meantime are flushed along, so group commit by the server is part of it. It is kinder than a slow
disk to those who come during the wait: with a real fsync they would have to wait for the next one.
Only a superuser may set it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

MOST_MS = 100
"""How long PostgreSQL lets a commit wait, at the most."""

_WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")


@contextmanager
def slow_sqlite(milliseconds: float) -> Generator[None]:
    """Slow down the connections to SQLite that this process opens inside the block."""
    if not milliseconds:
        yield
        return
    connect = sqlite3.connect

    def connect_slowly(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(_delay(connection, milliseconds / 1000))
        return connection

    sqlite3.connect = connect_slowly  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = connect


def _delay(connection: sqlite3.Connection, seconds: float) -> Callable[[str], None]:
    """What is called with each statement before it runs, in the thread that runs it."""
    seen = connection.total_changes

    def before(statement: str) -> None:
        nonlocal seen
        word = statement.lstrip()[:8].upper()
        if word.startswith("COMMIT"):
            wrote, seen = connection.total_changes > seen, connection.total_changes
        else:
            wrote = word.startswith(_WRITES) and not connection.in_transaction
        if wrote:
            time.sleep(seconds)

    return before


def postgresql_settings(milliseconds: float) -> dict[str, str]:
    """What the database is set to, for the sessions that come."""
    if not milliseconds:
        return {}
    return {"commit_delay": f"{milliseconds * 1000:.0f}", "commit_siblings": "0"}
