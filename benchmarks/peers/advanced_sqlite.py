"""The SDK's own AdvancedSQLiteSession: items with branches and turns, on SQLite alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from typing import ClassVar, Self

from agents.extensions.memory import AdvancedSQLiteSession

from benchmarks.peers.base import PRAGMAS, describe, file_of
from benchmarks.peers.sessions import ItemPeer


class AdvancedSQLite(ItemPeer[AdvancedSQLiteSession]):
    """A session object for each session, made once, each with its own connections."""

    name: ClassVar[str] = "advanced-sqlite"

    def __init__(self, path: str) -> None:
        super().__init__(partial(_opened, path))
        self._path = path

    @classmethod
    async def open(cls, url: str) -> Self:
        path = file_of(url)
        _opened(path, "first").close()
        return cls(path)

    async def durability(self) -> str:
        """Of a connection opened as the session opens its own, which sets no more than WAL."""
        with closing(sqlite3.connect(self._path)) as connection:
            values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS]
        return describe(dict(zip(PRAGMAS, values, strict=True)))

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()


def _opened(path: str, session_id: str) -> AdvancedSQLiteSession:
    return AdvancedSQLiteSession(session_id=session_id, db_path=path, create_tables=True)
