"""The limit on PostgreSQL: asyncpg, with nothing above it.

The least work that leaves the same facts behind: an event in a log, the version of its stream, and
the current state, in one durable transaction, which is one statement and one round trip. No
validation, no retries, no batching, no fence for readers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import asyncpg

from benchmarks.peers.bare import event_id
from benchmarks.peers.base import SETTINGS, Item, Peer, Values, address_of, describe

CONNECTIONS = 15
"""As many as SQLAlchemy's pool has at most, with its default settings."""

_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id text PRIMARY KEY, updated_at timestamptz DEFAULT now());
CREATE TABLE IF NOT EXISTS items (
    id bigserial PRIMARY KEY, session_id text NOT NULL REFERENCES sessions, data text NOT NULL);
CREATE INDEX IF NOT EXISTS items_of_session ON items (session_id, id);
CREATE TABLE IF NOT EXISTS heads (stream_id text PRIMARY KEY, version bigint NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    position bigserial PRIMARY KEY, stream_id text NOT NULL, version bigint NOT NULL,
    event_id uuid NOT NULL UNIQUE, type text NOT NULL, data text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(), UNIQUE (stream_id, version));
CREATE TABLE IF NOT EXISTS metadata (
    session_id text REFERENCES sessions, key text, value text NOT NULL,
    PRIMARY KEY (session_id, key));
CREATE INDEX IF NOT EXISTS metadata_by_value ON metadata (key, value);
"""
_HEAD = """head AS (
    INSERT INTO heads VALUES ($1, 1)
    ON CONFLICT (stream_id) DO UPDATE SET version = heads.version + 1 RETURNING version
)"""
_SET = f"""WITH {_HEAD}, session AS (
    INSERT INTO sessions VALUES ($1) ON CONFLICT DO NOTHING
), event AS (
    INSERT INTO events (stream_id, version, event_id, type, data)
    SELECT $1, version, $2, 'metadata_set', $3 FROM head
)
INSERT INTO metadata SELECT $1, * FROM unnest($4::text[], $5::text[])
ON CONFLICT (session_id, key) DO UPDATE SET value = excluded.value"""
_ADD = f"""WITH {_HEAD}, session AS (
    INSERT INTO sessions VALUES ($1) ON CONFLICT (session_id) DO UPDATE SET updated_at = now()
), added AS (
    INSERT INTO items (session_id, data) SELECT $1, * FROM unnest($3::text[]) RETURNING id
)
INSERT INTO events (stream_id, version, event_id, type, data)
SELECT $1, version, $2, 'items_added', (SELECT json_agg(id) FROM added)::text FROM head"""
_APPEND = f"""WITH {_HEAD}
INSERT INTO events (stream_id, version, event_id, type, data)
SELECT $1, version, $2, 'noted', $3 FROM head"""
_FIND = "SELECT session_id FROM metadata WHERE key = $1 AND value = $2 LIMIT $3"
_GET = "SELECT key, value FROM metadata WHERE session_id = $1 AND key = ANY($2::text[])"
_ITEMS = "SELECT data FROM items WHERE session_id = $1 ORDER BY id DESC LIMIT $2"


async def _keep(_connection: Any) -> None:
    """Nothing to reset: no statement here leaves anything behind in its connection."""


class BarePostgreSQL(Peer):
    """A pool of connections, full from the start."""

    name: ClassVar[str] = "bare-driver"

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str) -> Self:
        pool = await asyncpg.create_pool(
            address_of(url),
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            reset=_keep,
        )
        await pool.execute(_TABLES)
        return cls(pool)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        keys, texts = list(metadata), [json.dumps(value) for value in metadata.values()]
        data = json.dumps(list(zip(keys, texts, strict=True)))
        await self._pool.execute(_SET, session_id, event_id(), data, keys, texts)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        rows = await self._pool.fetch(_GET, session_id, keys)
        found = {key: json.loads(value) for key, value in rows}
        return {key: found.get(key) for key in keys}

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        texts = [json.dumps(item) for item in items]
        await self._pool.execute(_ADD, session_id, event_id(), texts)

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        rows = await self._pool.fetch(_ITEMS, session_id, limit)
        return [json.loads(data) for (data,) in reversed(rows)]

    async def append(self, session_id: str, data: Values) -> None:
        await self._pool.execute(_APPEND, session_id, event_id(), json.dumps(data))

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        rows = await self._pool.fetch(_FIND, key, json.dumps(value), limit)
        return [session_id for (session_id,) in rows]

    async def read_stream(self, session_id: str) -> list[Values]:
        query = "SELECT data FROM events WHERE stream_id = $1 AND type = 'noted' ORDER BY version"
        return [json.loads(data) for (data,) in await self._pool.fetch(query, session_id)]

    async def export(self) -> list[Values]:
        query = "SELECT data FROM events WHERE type = 'noted' ORDER BY position"
        return [json.loads(data) for (data,) in await self._pool.fetch(query)]

    async def durability(self) -> str:
        values = [await self._pool.fetchval(f"SHOW {name}") for name in SETTINGS]
        return describe(dict(zip(SETTINGS, values, strict=True)))

    async def close(self) -> None:
        await self._pool.close()
