"""Upstream's SQLAlchemySession with the metadata table that was proposed for it.

Written as its users would write it: a subclass in upstream's own style, with upstream's own locking
and retries, one transaction per call. The issue wants it to run on every database, so each key is
looked up and then inserted or updated. It keeps the current state only: no history, no actor, no
versions. Its items are upstream's, untouched: see the peer of that name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import (
    TIMESTAMP,
    Column,
    ForeignKey,
    Index,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from benchmarks.peers.base import Values, durability_of
from benchmarks.peers.sessions import SessionPeer

_NOW = text("CURRENT_TIMESTAMP")


class EAVSession(SQLAlchemySession):
    """A session with metadata as entity, attribute, value."""

    def __init__(
        self, session_id: str, *, engine: AsyncEngine, create_tables: bool = False
    ) -> None:
        super().__init__(session_id, engine=engine, create_tables=create_tables)
        self._session_metadata = Table(
            "agent_sessions_metadata",
            self._metadata,
            Column(
                "session_id",
                String,
                ForeignKey("agent_sessions.session_id", ondelete="CASCADE"),
                primary_key=True,
            ),
            Column("key", String(255), primary_key=True),
            Column("value", Text),
            Column("created_at", TIMESTAMP, server_default=_NOW, nullable=False),
            Column("updated_at", TIMESTAMP, server_default=_NOW, nullable=False),
            Index("idx_session_metadata_key_value", "key", "value"),
        )

    async def set_metadata(self, metadata: Values) -> None:
        """Make sure that the session exists, and upsert each key."""
        await self._ensure_tables()

        async def write() -> None:
            async with self._session() as sess, sess.begin():
                await self._lock_session(sess, create=True)
                for key, value in metadata.items():
                    await self._upsert(sess, key, json.dumps(value))
                await sess.execute(
                    update(self._sessions)
                    .where(self._sessions.c.session_id == self.session_id)
                    .values(updated_at=_NOW)
                )

        await self._run_sqlite_write_with_retry(write)

    async def _upsert(self, sess: AsyncSession, key: str, value: str) -> None:
        table = self._session_metadata
        this = (table.c.session_id == self.session_id, table.c.key == key)
        existing = await sess.execute(select(table.c.key).where(*this))
        if existing.scalar_one_or_none() is None:
            row = {"session_id": self.session_id, "key": key, "value": value}
            await sess.execute(insert(table).values(row))
        else:
            await sess.execute(update(table).where(*this).values(value=value, updated_at=_NOW))

    async def get_metadata(self, keys: Sequence[str]) -> dict[str, Any]:
        """The given keys, with None for a missing one."""
        await self._ensure_tables()
        table = self._session_metadata
        async with self._session() as sess:
            rows = await sess.execute(
                select(table.c.key, table.c.value).where(
                    table.c.session_id == self.session_id, table.c.key.in_(keys)
                )
            )
            found = {key: json.loads(value) for key, value in rows}
        return {key: found.get(key) for key in keys}

    async def delete_metadata(self, keys: Sequence[str]) -> None:
        """Remove the given keys."""
        await self._ensure_tables()
        table = self._session_metadata

        async def write() -> None:
            async with self._session() as sess, sess.begin():
                await self._lock_session(sess, create=False)
                await sess.execute(
                    delete(table).where(
                        table.c.session_id == self.session_id, table.c.key.in_(keys)
                    )
                )

        await self._run_sqlite_write_with_retry(write)

    async def find_sessions_by_metadata(self, key: str, value: Any, limit: int) -> list[str]:
        """Ids of all sessions whose ``key`` equals ``value``."""
        await self._ensure_tables()
        table = self._session_metadata
        async with self._session() as sess:
            rows = await sess.execute(
                select(table.c.session_id)
                .where(table.c.key == key, table.c.value == json.dumps(value))
                .limit(limit)
            )
            return list(rows.scalars())


class EAV(SessionPeer[EAVSession]):
    """One engine, and a session object for each session, made once."""

    name: ClassVar[str] = "eav"

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(partial(EAVSession, engine=engine))
        self._engine = engine

    @classmethod
    async def open(cls, url: str) -> Self:
        engine = create_async_engine(url)
        await EAVSession("first", engine=engine, create_tables=True).get_metadata([])
        return cls(engine)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        await self._session(session_id).set_metadata(metadata)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        return await self._session(session_id).get_metadata(keys)

    async def delete_metadata(self, session_id: str, keys: Sequence[str]) -> None:
        await self._session(session_id).delete_metadata(keys)

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        return await self._session("any").find_sessions_by_metadata(key, value, limit)

    async def durability(self) -> str:
        return await durability_of(self._engine)

    async def close(self) -> None:
        await self._engine.dispose()
