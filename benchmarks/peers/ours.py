"""eventmeta, as its README says to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.peers.base import Item, Values, as_items, durability_of
from eventmeta import MetadataSession, MetadataStore


class Ours:
    """One store, and a session object for each session, made once."""

    name: ClassVar[str] = "eventmeta"

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._sessions: dict[str, MetadataSession] = {}

    @classmethod
    async def open(cls, url: str) -> Self:
        store = MetadataStore(create_async_engine(url))
        await store.create_tables()
        return cls(store)

    def _session(self, session_id: str) -> MetadataSession:
        if session_id not in self._sessions:
            self._sessions[session_id] = self._store.session(session_id)
        return self._sessions[session_id]

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        await self._session(session_id).set_metadata(metadata)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        return await self._session(session_id).get_metadata(keys)

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        await self._session(session_id).add_items(cast(Any, items))

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        return as_items(await self._session(session_id).get_items(limit))

    async def durability(self) -> str:
        return await durability_of(self._store.engine)

    async def close(self) -> None:
        await self._store.close()
        await self._store.engine.dispose()
