"""eventmeta, as its README says to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from sqlalchemy import MetaData, select
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.peers.base import Values, durability_of
from benchmarks.peers.sessions import ItemPeer
from eventmeta import MetadataSession, MetadataStore, NewEvent, TableOptions
from projections import Projection, metadata_projection

NOTED = "noted"
COPY = "metadata_again"
"""A second table of the metadata, and the projection that keeps it."""


class Ours(ItemPeer[MetadataSession]):
    """One store, and a session object for each session, made once."""

    name: ClassVar[str] = "eventmeta"
    options: ClassVar[TableOptions] = {}

    def __init__(self, store: MetadataStore) -> None:
        super().__init__(store.session)
        self._store = store
        self._copy: Projection | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        store = MetadataStore(create_async_engine(url), **cls.options)
        await store.create_tables()
        return cls(store)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        await self._session(session_id).set_metadata(metadata)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        return await self._session(session_id).get_metadata(keys)

    async def delete_metadata(self, session_id: str, keys: Sequence[str]) -> None:
        await self._session(session_id).delete_metadata(keys)

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        return await self._store.find_sessions_by_metadata(key, value, limit)

    async def list_sessions(self, limit: int) -> list[str]:
        return [entry.session_id for entry in await self._store.list_sessions(limit=limit)]

    async def history(self, session_id: str, key: str) -> list[Any]:
        entries = await self._session(session_id).history(key)
        return [entry.changes[key].new for entry in entries]

    async def metadata_as_of(
        self, session_id: str, keys: Sequence[str], changes: int
    ) -> dict[str, Any]:
        return await self._session(session_id).get_metadata(keys, as_of=changes)

    async def append(self, session_id: str, data: Values) -> None:
        await self._store.append(session_id, NewEvent(NOTED, data))

    async def read_stream(self, session_id: str) -> list[Values]:
        return [event.data async for event in self._store.events(stream=session_id)]

    async def export(self) -> list[Values]:
        return [event.data async for event in self._store.events() if event.type == NOTED]

    async def rebuild(self) -> None:
        await self._store.rebuild("metadata")

    async def follow(self, session_id: str) -> dict[str, Any]:
        if self._copy is None:
            self._copy = replace(metadata_projection(MetaData(), COPY), name=COPY)
            self._store.register(self._copy)
            await self._store.create_tables()
        await self._store.catch_up(COPY)
        table = self._copy.table.c
        query = select(table.key, table.value).where(table.session_id == session_id)
        async with self._store.engine.connect() as connection:
            return {key: json.loads(value) for key, value in await connection.execute(query)}

    async def durability(self) -> str:
        return await durability_of(self._store.engine)

    async def close(self) -> None:
        await self._store.close()
        await self._store.engine.dispose()


class Structured(Ours):
    """The same with the tables of conversations, tool calls and usage."""

    name: ClassVar[str] = "structured"
    options: ClassVar[TableOptions] = {"structured_metadata": True}
