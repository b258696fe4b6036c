"""Everything that differs between databases."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.dialects.base import Dialect, Failure
from eventmeta.dialects.relation import EventRelation, concerns
from eventmeta.errors import UnsupportedEngine

__all__ = ["Dialect", "EventRelation", "Failure", "concerns", "dialect_of"]


_ATTRIBUTE = "eventmeta_dialect"


def dialect_of(engine: AsyncEngine) -> Dialect:
    """The one dialect of ``engine``, which configures the engine's connections.

    Raises:
        UnsupportedEngine: There is none for its database or driver.
    """
    kept = vars(engine.sync_engine)
    if _ATTRIBUTE not in kept:
        kept[_ATTRIBUTE] = _make_dialect(engine)
    dialect: Dialect = kept[_ATTRIBUTE]
    return dialect


def _make_dialect(engine: AsyncEngine) -> Dialect:
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
