"""The limit for many callers on SQLite: the bare driver's least work, for all who wait at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import orjson

from benchmarks.peers.bare import event_id
from benchmarks.peers.bare_sqlite import EVENT, HEAD, ITEMS, SESSION, VALUE, BareSQLite
from benchmarks.peers.base import Item
from benchmarks.peers.gathering import Add, Gathered, Get, GetItems, Set

_GET = """SELECT asked.key, metadata.key, metadata.value
    FROM json_each(?) AS asked CROSS JOIN metadata
    WHERE metadata.session_id = json_extract(asked.value, '$[0]')
    AND metadata.key IN (SELECT value FROM json_each(asked.value, '$[1]'))"""


class GatheredSQLite(Gathered, BareSQLite):
    """A batch is one hop to the connection's thread."""

    async def _set_all(self, requests: list[Set]) -> list[None]:
        rows, events = [], []
        for session_id, metadata in requests:
            own = [(key, orjson.dumps(value).decode()) for key, value in metadata.items()]
            rows += [(session_id, *pair) for pair in own]
            events.append((session_id, "metadata_set", orjson.dumps(own).decode()))

        def work(raw: sqlite3.Connection) -> None:
            with raw:
                raw.execute("BEGIN IMMEDIATE")
                raw.executemany(
                    "INSERT OR IGNORE INTO sessions (session_id) VALUES (?)",
                    [(session_id,) for session_id, _ in requests],
                )
                _record(raw, events)
                raw.executemany(VALUE, rows)

        await self._run(work)
        return [None] * len(requests)

    async def _get_all(self, requests: list[Get]) -> list[dict[str, Any]]:
        asked = orjson.dumps(requests).decode()
        rows = await self._run(lambda raw: raw.execute(_GET, (asked,)).fetchall())
        results: list[dict[str, Any]] = [dict.fromkeys(keys) for _, keys in requests]
        for n, key, value in rows:
            results[n][key] = orjson.loads(value)
        return results

    async def _add_all(self, requests: list[Add]) -> list[None]:
        texts = [
            (session_id, [orjson.dumps(item).decode() for item in items])
            for session_id, items in requests
        ]

        def work(raw: sqlite3.Connection) -> None:
            insert = "INSERT INTO items (session_id, data) VALUES (?, ?)"
            with raw:
                raw.execute("BEGIN IMMEDIATE")
                raw.executemany(SESSION, [(session_id,) for session_id, _ in texts])
                events = []
                for session_id, data in texts:
                    ids = [raw.execute(insert, (session_id, text)).lastrowid for text in data]
                    events.append((session_id, "items_added", orjson.dumps(ids).decode()))
                _record(raw, events)

        await self._run(work)
        return [None] * len(requests)

    async def _get_all_items(self, requests: list[GetItems]) -> list[list[Item]]:
        found = await self._run(
            lambda raw: [raw.execute(ITEMS, request).fetchall() for request in requests]
        )
        return [[orjson.loads(data) for (data,) in reversed(rows)] for rows in found]


def _record(raw: sqlite3.Connection, events: Sequence[tuple[str, str, str]]) -> None:
    """Move the heads of the streams and append the events."""
    rows = []
    for stream_id, kind, data in events:
        ((version,),) = raw.execute(HEAD, (stream_id,)).fetchall()
        rows.append((stream_id, version, event_id(), kind, data))
    raw.executemany(EVENT, rows)
