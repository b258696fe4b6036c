"""The limit on SQLite: aiosqlite, with nothing above it.

The least work that leaves the same facts behind: an event in a log, the version of its stream, and
the current state, in one durable transaction. A transaction is one hop to the connection's thread.
No validation, no retries, no batching, no fence for readers.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import aiosqlite

from benchmarks.peers.bare import event_id
from benchmarks.peers.base import PRAGMAS, Item, Peer, Values, describe, file_of

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (session_id TEXT PRIMARY KEY, updated_at TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS items_of_session ON items (session_id, id);
CREATE TABLE IF NOT EXISTS heads (
    stream_id TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY, stream_id TEXT NOT NULL, version INTEGER NOT NULL,
    event_id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, data TEXT NOT NULL,
    recorded_at TEXT NOT NULL, UNIQUE (stream_id, version));
CREATE TABLE IF NOT EXISTS metadata (
    session_id TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (session_id, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metadata_by_value ON metadata (key, value);
"""
SESSION = """INSERT INTO sessions VALUES (?, CURRENT_TIMESTAMP)
    ON CONFLICT DO UPDATE SET updated_at = CURRENT_TIMESTAMP"""
HEAD = """INSERT INTO heads VALUES (?, 1)
    ON CONFLICT DO UPDATE SET version = version + 1 RETURNING version"""
EVENT = """INSERT INTO events (stream_id, version, event_id, type, data, recorded_at)
    VALUES (?, ?, ?, ?, ?, CURRENT_TIMESTAMP)"""
VALUE = """INSERT INTO metadata VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value"""
ITEMS = "SELECT data FROM items WHERE session_id = ? ORDER BY id DESC LIMIT ?"
_FIND = "SELECT session_id FROM metadata WHERE key = ? AND value = ? LIMIT ?"


class BareSQLite(Peer):
    """One connection, used by one caller at a time."""

    name: ClassVar[str] = "bare-driver"

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._owner = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> Self:
        connection = await aiosqlite.connect(file_of(url), isolation_level=None)
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.executescript(_TABLES)
        return cls(connection)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` in one hop; aiosqlite's public methods take one for each statement."""
        async with self._owner:
            result: T = await self._connection._execute(  # type: ignore[no-untyped-call]
                work, self._connection._conn
            )
            return result

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        rows = [(session_id, key, json.dumps(value)) for key, value in metadata.items()]
        data = json.dumps([row[1:] for row in rows])

        def work(raw: sqlite3.Connection) -> None:
            with raw:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("INSERT OR IGNORE INTO sessions (session_id) VALUES (?)", [session_id])
                _record(raw, session_id, "metadata_set", data)
                raw.executemany(VALUE, rows)

        await self._run(work)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, value FROM metadata WHERE session_id = ? AND key IN ({marks})"
        rows = await self._run(lambda raw: raw.execute(query, [session_id, *keys]).fetchall())
        found = {key: json.loads(value) for key, value in rows}
        return {key: found.get(key) for key in keys}

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        rows = [(session_id, json.dumps(item)) for item in items]

        def work(raw: sqlite3.Connection) -> None:
            with raw:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute(SESSION, [session_id])
                insert = "INSERT INTO items (session_id, data) VALUES (?, ?)"
                ids = [raw.execute(insert, row).lastrowid for row in rows]
                _record(raw, session_id, "items_added", json.dumps(ids))

        await self._run(work)

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        rows = await self._run(lambda raw: raw.execute(ITEMS, [session_id, limit]).fetchall())
        return [json.loads(data) for (data,) in reversed(rows)]

    async def append(self, session_id: str, data: Values) -> None:
        text = json.dumps(data)

        def work(raw: sqlite3.Connection) -> None:
            with raw:
                raw.execute("BEGIN IMMEDIATE")
                _record(raw, session_id, "noted", text)

        await self._run(work)

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        values = [key, json.dumps(value), limit]
        return [
            row[0] for row in await self._run(lambda raw: raw.execute(_FIND, values).fetchall())
        ]

    async def read_stream(self, session_id: str) -> list[Values]:
        query = "SELECT data FROM events WHERE stream_id = ? AND type = 'noted' ORDER BY version"
        rows = await self._run(lambda raw: raw.execute(query, [session_id]).fetchall())
        return [json.loads(data) for (data,) in rows]

    async def export(self) -> list[Values]:
        query = "SELECT data FROM events WHERE type = 'noted' ORDER BY position"
        rows = await self._run(lambda raw: raw.execute(query).fetchall())
        return [json.loads(data) for (data,) in rows]

    async def durability(self) -> str:
        values = [
            (await self._run(lambda raw, name=name: raw.execute(f"PRAGMA {name}").fetchone()))[0]  # type: ignore[misc]
            for name in PRAGMAS
        ]
        return describe(dict(zip(PRAGMAS, values, strict=True)))

    async def close(self) -> None:
        await self._connection.close()


def _record(raw: sqlite3.Connection, stream_id: str, kind: str, data: str) -> None:
    """Move the head of the stream and append the event."""
    ((version,),) = raw.execute(HEAD, [stream_id]).fetchall()
    raw.execute(EVENT, [stream_id, version, event_id(), kind, data])
