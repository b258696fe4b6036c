"""The SDK's own SQLAlchemySession: items, on every database."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Self

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.peers.base import durability_of
from benchmarks.peers.sessions import ItemPeer


class Upstream(ItemPeer[SQLAlchemySession]):
    """One engine, and a session object for each session, made once."""

    name: ClassVar[str] = "upstream"

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(partial(SQLAlchemySession, engine=engine))
        self._engine = engine

    @classmethod
    async def open(cls, url: str) -> Self:
        engine = create_async_engine(url)
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        return cls(engine)

    async def durability(self) -> str:
        return await durability_of(self._engine)

    async def close(self) -> None:
        await self._engine.dispose()
