"""The SDK's own SQLAlchemySession: items, on every database."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.peers.base import Item, Peer, as_items, durability_of


class Upstream(Peer):
    """One engine, and a session object for each session, made once."""

    name: ClassVar[str] = "upstream"

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sessions: dict[str, SQLAlchemySession] = {}

    @classmethod
    async def open(cls, url: str) -> Self:
        engine = create_async_engine(url)
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        return cls(engine)

    def _session(self, session_id: str) -> SQLAlchemySession:
        if session_id not in self._sessions:
            self._sessions[session_id] = SQLAlchemySession(session_id, engine=self._engine)
        return self._sessions[session_id]

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        await self._session(session_id).add_items(cast(Any, items))

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        return as_items(await self._session(session_id).get_items(limit))

    async def pop_item(self, session_id: str) -> Item | None:
        return cast("Item | None", await self._session(session_id).pop_item())

    async def durability(self) -> str:
        return await durability_of(self._engine)

    async def close(self) -> None:
        await self._engine.dispose()
