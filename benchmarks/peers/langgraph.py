"""LangGraph's async stores: the metadata of a session as one document under one key.

Puts and gets of one tick of the event loop are batched by the store itself. It keeps the current
document only: no history, no index on values, and a put replaces the whole document.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self

from langgraph.store.base import BaseStore

from benchmarks.peers.base import PRAGMAS, SETTINGS, Peer, Values, address_of, describe, file_of

SESSIONS = ("sessions",)
CONNECTIONS = {"min_size": 5, "max_size": 20}
"""The pool of the example in the store's documentation."""


class _LangGraph(Peer):
    name: ClassVar[str] = "langgraph"

    def __init__(self, store: BaseStore, stack: AsyncExitStack, durability: str) -> None:
        self._store = store
        self._stack = stack
        self._durability = durability

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        await self._store.aput(SESSIONS, session_id, dict(metadata))

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        found = await self._store.aget(SESSIONS, session_id)
        return {key: found.value.get(key) if found else None for key in keys}

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        found = await self._store.asearch(SESSIONS, filter={key: value}, limit=limit)
        return [item.key for item in found]

    async def list_sessions(self, limit: int) -> list[str]:
        return [item.key for item in await self._store.asearch(SESSIONS, limit=limit)]

    async def durability(self) -> str:
        return self._durability

    async def close(self) -> None:
        await self._stack.aclose()


class OnSQLite(_LangGraph):
    """``AsyncSqliteStore``."""

    @classmethod
    async def open(cls, url: str) -> Self:
        from langgraph.store.sqlite.aio import AsyncSqliteStore

        stack = AsyncExitStack()
        store = await stack.enter_async_context(AsyncSqliteStore.from_conn_string(file_of(url)))
        await store.setup()
        values = []
        for name in PRAGMAS:
            async with store.conn.execute(f"PRAGMA {name}") as cursor:
                values.append((await cursor.fetchone())[0])
        return cls(store, stack, describe(dict(zip(PRAGMAS, values, strict=True))))


class OnPostgreSQL(_LangGraph):
    """``AsyncPostgresStore`` with a pool."""

    @classmethod
    async def open(cls, url: str) -> Self:
        from langgraph.store.postgres.aio import AsyncPostgresStore

        stack = AsyncExitStack()
        store = await stack.enter_async_context(
            AsyncPostgresStore.from_conn_string(address_of(url), pool_config=dict(CONNECTIONS))
        )
        await store.setup()
        values = []
        async with store.conn.connection() as connection:
            for name in SETTINGS:
                row = await (await connection.execute(f"SHOW {name}")).fetchone()
                values.append(row[name])
        return cls(store, stack, describe(dict(zip(SETTINGS, values, strict=True))))
