"""The limit for many callers on PostgreSQL: the bare driver's least work, for all who wait at once.

A batch is one statement, as a transaction of its own, so it is one round trip and one commit.
"""

from __future__ import annotations

from typing import Any

import orjson

from benchmarks.peers.bare import event_id
from benchmarks.peers.bare_postgresql import BarePostgreSQL
from benchmarks.peers.base import Item
from benchmarks.peers.gathering import Add, Gathered, Get, GetItems, Set

_HEADS = """heads_moved AS (
    INSERT INTO heads SELECT unnest($1::text[]), 1
    ON CONFLICT (stream_id) DO UPDATE SET version = heads.version + 1 RETURNING stream_id, version
)"""
_SET = f"""WITH {_HEADS}, created AS (
    INSERT INTO sessions SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
), recorded AS (
    INSERT INTO events (stream_id, version, event_id, type, data)
    SELECT stream_id, version, id, 'metadata_set', data
    FROM heads_moved JOIN unnest($1::text[], $2::uuid[], $3::text[]) AS g (stream_id, id, data)
    USING (stream_id)
)
INSERT INTO metadata SELECT * FROM unnest($4::text[], $5::text[], $6::text[])
ON CONFLICT (session_id, key) DO UPDATE SET value = excluded.value"""
_ADD = f"""WITH {_HEADS}, touched AS (
    INSERT INTO sessions SELECT unnest($1::text[])
    ON CONFLICT (session_id) DO UPDATE SET updated_at = now()
), added AS (
    INSERT INTO items (session_id, data) SELECT * FROM unnest($3::text[], $4::text[])
    RETURNING session_id, id
)
INSERT INTO events (stream_id, version, event_id, type, data)
SELECT stream_id, version, event_id, 'items_added', ids
FROM heads_moved JOIN unnest($1::text[], $2::uuid[]) AS g (stream_id, event_id) USING (stream_id)
JOIN (SELECT session_id AS stream_id, json_agg(id)::text AS ids FROM added GROUP BY session_id) AS a
USING (stream_id)"""
_GET = """SELECT n, found.key, found.value
FROM unnest($1::text[]) WITH ORDINALITY AS asked (session_id, n) CROSS JOIN LATERAL (
    SELECT key, value FROM metadata
    WHERE metadata.session_id = asked.session_id AND key = ANY($2::text[]) OFFSET 0
) AS found"""
_GET_ITEMS = """SELECT n, found.data
FROM unnest($1::text[]) WITH ORDINALITY AS asked (session_id, n) CROSS JOIN LATERAL (
    SELECT id, data FROM items WHERE items.session_id = asked.session_id
    ORDER BY id DESC LIMIT $2
) AS found ORDER BY found.id"""


class GatheredPostgreSQL(Gathered, BarePostgreSQL):
    """All who are gathered ask for the same keys and number of items."""

    async def _set_all(self, requests: list[Set]) -> list[None]:
        sessions, keys, values, data = [], [], [], []
        for session_id, metadata in requests:
            own = [(key, orjson.dumps(value).decode()) for key, value in metadata.items()]
            data.append(orjson.dumps(own).decode())
            for key, value in own:
                sessions.append(session_id)
                keys.append(key)
                values.append(value)
        streams = [session_id for session_id, _ in requests]
        ids = [event_id() for _ in requests]
        await self._pool.execute(_SET, streams, ids, data, sessions, keys, values)
        return [None] * len(requests)

    async def _get_all(self, requests: list[Get]) -> list[dict[str, Any]]:
        sessions = [session_id for session_id, _ in requests]
        rows = await self._pool.fetch(_GET, sessions, requests[0][1])
        results: list[dict[str, Any]] = [dict.fromkeys(keys) for _, keys in requests]
        for n, key, value in rows:
            results[n - 1][key] = orjson.loads(value)
        return results

    async def _add_all(self, requests: list[Add]) -> list[None]:
        streams = [session_id for session_id, _ in requests]
        sessions = [session_id for session_id, items in requests for _ in items]
        texts = [orjson.dumps(item).decode() for _, items in requests for item in items]
        ids = [event_id() for _ in requests]
        await self._pool.execute(_ADD, streams, ids, sessions, texts)
        return [None] * len(requests)

    async def _get_all_items(self, requests: list[GetItems]) -> list[list[Item]]:
        sessions = [session_id for session_id, _ in requests]
        results: list[list[Item]] = [[] for _ in requests]
        for n, data in await self._pool.fetch(_GET_ITEMS, sessions, requests[0][1]):
            results[n - 1].append(orjson.loads(data))
        return results
