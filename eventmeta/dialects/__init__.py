"""Everything that differs between databases."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool

from eventmeta.database_errors import UnsupportedEngine
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.failure import OF_THE_STATEMENT, Failure, Rule
from eventmeta.dialects.relation import EventRelation, concerns

__all__ = [
    "OF_THE_STATEMENT",
    "Dialect",
    "EventRelation",
    "Failure",
    "Rule",
    "concerns",
    "dialect_of",
]


_ATTRIBUTE = "eventmeta_dialect"
_DRIVERS = {
    "sqlite": "aiosqlite",
    "postgresql": "asyncpg",
    "mysql": "asyncmy",
    "mariadb": "asyncmy",
}


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
    name, driver = engine.dialect.name, engine.dialect.driver
    if driver != _DRIVERS.get(name):
        raise UnsupportedEngine(
            f"{name}+{driver} is not supported: make the engine from a URL that begins with "
            "sqlite+aiosqlite://, postgresql+asyncpg:// or mysql+asyncmy://"
        )
    if name == "sqlite":
        from eventmeta.dialects.sqlite import SharedSQLite, SQLite

        return SharedSQLite(engine) if isinstance(engine.pool, StaticPool) else SQLite(engine)
    if name == "postgresql":
        from eventmeta.dialects.postgresql import PostgreSQL

        return PostgreSQL(engine)
    from eventmeta.dialects.mysql import MySQL

    return MySQL(engine)
