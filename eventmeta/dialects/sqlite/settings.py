"""Settings of a connection of SQLite: set for the store, and put back afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from eventmeta.core.deadline import Deadline
from eventmeta.dialects.items import spell_out
from eventmeta.dialects.sqlite.items import SPELL_OUT
from eventmeta.dialects.streams import LOCK_TIMEOUT_MS

_TO_SAY_SO = 0.1
"""Seconds that remain to tell the caller that the file is locked."""

_FULL = 2
_NEEDED = {"busy_timeout": LOCK_TIMEOUT_MS, "synchronous": _FULL}


class Facts(NamedTuple):
    """The facts found out about a connection when it was prepared.

    Attributes:
        set_up: Statements that set it up for a transaction of the store; none for most engines.
        put_back: Statements that restore the app's settings.
    """

    set_up: tuple[str, ...]
    put_back: tuple[str, ...]


def find_out(dbapi_connection: Any) -> Facts:
    """Prepare a connection, and return the facts about it."""
    cursor = dbapi_connection.cursor()
    with suppress(sqlite3.OperationalError):  # a read-only database stays as it is
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] == "delete":  # the default, so no one has chosen it
            cursor.execute("PRAGMA journal_mode = WAL")
    found: dict[str, int] = {}
    for name in _NEEDED:
        cursor.execute(f"PRAGMA {name}")
        (found[name],) = cursor.fetchone()
    cursor.close()
    dbapi_connection.create_function(SPELL_OUT, 1, spell_out, deterministic=True)
    special = [name for name in _NEEDED if found[name] != _NEEDED[name]]
    if found["synchronous"] > _FULL:
        special.remove("synchronous")
    return Facts(
        tuple(f"PRAGMA {name} = {_NEEDED[name]}" for name in special),
        tuple(f"PRAGMA {name} = {found[name]}" for name in special),
    )


def run_pragmas(statements: Sequence[str], connection: sqlite3.Connection) -> None:
    """Run statements that yield no rows."""
    for statement in statements:
        connection.execute(statement)


@contextmanager
def set_up(connection: sqlite3.Connection, facts: Facts) -> Generator[None]:
    """Give the connection the settings that the store needs, for the block."""
    if not facts.set_up:
        yield
        return
    run_pragmas(facts.set_up, connection)
    try:
        yield
    finally:
        run_pragmas(facts.put_back, connection)


def patience_ms() -> int:
    """Return the number of milliseconds to wait for the lock of the file."""
    deadline = Deadline.current()
    if deadline is None:
        return LOCK_TIMEOUT_MS
    left = int(1000 * (deadline.left - _TO_SAY_SO))
    return max(min(left, LOCK_TIMEOUT_MS), 0)


@contextmanager
def waiting_no_longer(connection: sqlite3.Connection, milliseconds: int) -> Generator[None]:
    """Limit the wait for the lock of the file to ``milliseconds`` within the block."""
    if milliseconds == LOCK_TIMEOUT_MS:
        yield
        return
    connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
