"""The dialect of an engine, and engines from URLs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from eventmeta.core.database_errors import UnsupportedEngine
from eventmeta.core.errors import InvalidInput, MissingExtra
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import translated_schema

_ATTRIBUTE = "eventmeta_dialect"
_DRIVERS = {
    "sqlite": "aiosqlite",
    "postgresql": "asyncpg",
    "mysql": "asyncmy",
    "mariadb": "asyncmy",
}


_EXTRAS = {"asyncpg": "postgres", "asyncmy": "mysql"}
_OTHER_NAMES = {"postgres": "postgresql"}
_PREFIXES = "sqlite+aiosqlite://, postgresql+asyncpg:// or mysql+asyncmy://"


def read_url(url: object) -> URL:
    """Return ``url`` as a URL of SQLAlchemy. No message shows it, as it may hold a password.

    Raises:
        InvalidInput: ``url`` is not the URL of a database.
    """
    if not isinstance(url, str | URL):
        raise InvalidInput(
            f"the url is a {type(url).__name__}: give a string that begins with {_PREFIXES}"
        )
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidInput(
            f"the url cannot be read: give a string that begins with {_PREFIXES}, and write the "
            "special characters of a password as urllib.parse.quote_plus() does"
        ) from None


def make_engine(url: str | URL, engine_kwargs: dict[str, Any] | None) -> AsyncEngine:
    """Return a new engine for ``url``.

    Raises:
        InvalidInput: The URL cannot be read, or SQLAlchemy does not take ``engine_kwargs``.
        MissingExtra: The driver is not installed.
        UnsupportedEngine: There is no dialect for the database or the driver.
    """
    address = read_url(url)
    _check_driver(address.drivername)
    arguments = {} if engine_kwargs is None else engine_kwargs
    try:
        return create_async_engine(address, **arguments)
    except ModuleNotFoundError as error:
        if error.name not in _DRIVERS.values():
            raise
        extra = _EXTRAS.get(error.name or "")
        raise MissingExtra(str(error.name), extra) from None
    except (ArgumentError, TypeError) as error:
        raise InvalidInput(f"engine_kwargs cannot be used: {error}") from None


def check_engine(engine: object) -> None:
    """Raise unless ``engine`` is an async engine.

    Raises:
        UnsupportedEngine: It is something else.
    """
    if isinstance(engine, AsyncEngine):
        return
    kind = type(engine).__name__
    if isinstance(engine, str | URL):
        remedy = "call from_url(), or make an engine of it with create_async_engine()"
    elif isinstance(engine, Engine):
        name = engine.dialect.name
        driver = f"{name}+{_DRIVERS[name]}://" if name in _DRIVERS else _PREFIXES
        remedy = f"make one with create_async_engine() from a URL that begins with {driver}"
        kind = "synchronous engine"
    else:
        remedy = "give what create_async_engine() returns"
    raise UnsupportedEngine(f"the engine is a {kind}, but this needs an async engine: {remedy}")


def _check_driver(name: str) -> None:
    """Raise if the database or driver is not supported; the message gives the prefix that is.

    Raises:
        UnsupportedEngine: There is no dialect for the database or driver.
    """
    database, _, driver = name.partition("+")
    database = _OTHER_NAMES.get(database, database)
    supported = _DRIVERS.get(database)
    if supported is None:
        raise UnsupportedEngine(f"{name}:// is not supported: give a URL of {_PREFIXES}")
    if driver != supported or name != f"{database}+{driver}":
        extra = _EXTRAS.get(supported)
        install = f" (pip install 'eventmeta[{extra}]')" if extra else ""
        raise UnsupportedEngine(
            f"{name}:// is not supported: begin the URL with {database}+{supported}://{install}"
        )


def dialect_of(engine: AsyncEngine) -> Dialect:
    """Return the one dialect of ``engine`` and its options, which configures its connections.

    Raises:
        UnsupportedEngine: There is no dialect for its database, driver or options.
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
        from eventmeta.dialects.sqlite.driver import SQLite
        from eventmeta.dialects.sqlite.shared import SharedSQLite

        return SharedSQLite(engine) if isinstance(engine.pool, StaticPool) else SQLite(engine)
    if name == "postgresql":
        from eventmeta.dialects.postgresql.driver import PostgreSQL

        return PostgreSQL(engine)
    from eventmeta.dialects.mysql.driver import MySQL

    return MySQL(engine)
