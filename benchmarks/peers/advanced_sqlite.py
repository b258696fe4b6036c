"""The SDK's own AdvancedSQLiteSession: items with branches and turns, on SQLite alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, ClassVar, Self, cast

from agents.extensions.memory import AdvancedSQLiteSession

from benchmarks.peers.base import PRAGMAS, Item, Peer, as_items, describe, file_of


class AdvancedSQLite(Peer):
    """A session object for each session, made once, each with its own connections."""

    name: ClassVar[str] = "advanced-sqlite"

    def __init__(self, path: str) -> None:
        self._path = path
        self._sessions: dict[str, AdvancedSQLiteSession] = {}

    @classmethod
    async def open(cls, url: str) -> Self:
        path = file_of(url)
        AdvancedSQLiteSession(session_id="first", db_path=path, create_tables=True).close()
        return cls(path)

    def _session(self, session_id: str) -> AdvancedSQLiteSession:
        if session_id not in self._sessions:
            self._sessions[session_id] = AdvancedSQLiteSession(
                session_id=session_id, db_path=self._path, create_tables=True
            )
        return self._sessions[session_id]

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        await self._session(session_id).add_items(cast(Any, items))

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        return as_items(await self._session(session_id).get_items(limit))

    async def pop_item(self, session_id: str) -> Item | None:
        return cast("Item | None", await self._session(session_id).pop_item())

    async def durability(self) -> str:
        """Of a connection opened as the session opens its own, which sets no more than WAL."""
        with closing(sqlite3.connect(self._path)) as connection:
            values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS]
        return describe(dict(zip(PRAGMAS, values, strict=True)))

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()
