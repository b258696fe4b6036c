"""Everything that differs between databases."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.dialects.base import Dialect, EventRelation, Failure
from eventmeta.errors import UnsupportedEngine

__all__ = ["Dialect", "EventRelation", "Failure", "dialect_of"]


def dialect_of(engine: AsyncEngine) -> Dialect:
    """The dialect for ``engine``, whose connections it configures.

    Raises:
        UnsupportedEngine: There is none for its database or driver.
    """
    name = engine.dialect.name
    if name == "sqlite":
        from eventmeta.dialects.sqlite import SQLite

        return SQLite(engine)
    if name == "postgresql":
        from eventmeta.dialects.postgresql import PostgreSQL

        return PostgreSQL(engine)
    if name in ("mysql", "mariadb"):
        from eventmeta.dialects.mysql import MySQL

        return MySQL(engine)
    raise UnsupportedEngine(
        f"{name} is not supported: use sqlite+aiosqlite://, postgresql+asyncpg:// or mysql+asyncmy://"
    )
