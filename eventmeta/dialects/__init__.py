"""Everything that differs between databases."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool

from eventmeta.database_errors import UnsupportedEngine
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.failure import OF_THE_STATEMENT, Failure, Rule
from eventmeta.dialects.relation import EventRelation, concerns
from eventmeta.dialects.statement import translated_schema

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
    """Return the one dialect of ``engine`` and its options, which configures its connections.

    Raises:
        UnsupportedEngine: There is none for its database, driver or options.
    """
    kept: dict[str | None, Dialect] = vars(engine.sync_engine).setdefault(_ATTRIBUTE, {})
    schema = translated_schema(engine.sync_engine.get_execution_options())
    if schema not in kept:
        kept[schema] = _make_dialect(engine, schema)
    return kept[schema]


def _make_dialect(engine: AsyncEngine, schema: str | None) -> Dialect:
    name, driver = engine.dialect.name, engine.dialect.driver
    if driver != _DRIVERS.get(name):
        raise UnsupportedEngine(
            f"{name}+{driver} is not supported: make the engine from a URL that begins with "
            "sqlite+aiosqlite://, postgresql+asyncpg:// or mysql+asyncmy://"
        )
    if name == "sqlite":
        if schema is not None:
            raise UnsupportedEngine(
                f"schema_translate_map puts tables into {schema!r}, a file that is attached to a "
                "connection of SQLite, where writes would not be durable: give each tenant a file "
                "with an engine of its own"
            )
        from eventmeta.dialects.sqlite import SharedSQLite, SQLite

        return SharedSQLite(engine) if isinstance(engine.pool, StaticPool) else SQLite(engine)
    if name == "postgresql":
        from eventmeta.dialects.postgresql import PostgreSQL

        return PostgreSQL(engine)
    from eventmeta.dialects.mysql import MySQL

    return MySQL(engine)
