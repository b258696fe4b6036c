"""Where it is measured: databases as durable as in production, found as the tests find them."""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from benchmarks.slow_disk import postgresql_settings
from tests.support import servers

BACKENDS = ("sqlite", "postgresql")
"""Those on which peers are compared."""

OUR_BACKENDS = (*BACKENDS, "mariadb")

Databases = Callable[[int, float], AbstractAsyncContextManager[list[str]]]


@dataclass(frozen=True)
class Place:
    """A server.

    Attributes:
        server: Its name and version.
        databases: Gives the URLs of so many fresh, empty databases, whose commits take so many
            milliseconds longer, and drops them at the end. On SQLite the process that connects
            has to see to that: `benchmarks.slow_disk.slow_sqlite`.
    """

    server: str
    databases: Databases


@asynccontextmanager
async def opened(backend: str) -> AsyncGenerator[Place]:
    """The server of a backend.

    Raises:
        tests.support.servers.Unavailable: It cannot be had.
    """
    if backend == "sqlite":
        yield Place(f"SQLite {sqlite3.sqlite_version}", in_files)
    elif backend == "mariadb":
        with servers.mariadb(durable=True) as server:
            version = await _version(server, "SELECT version()")
            yield Place(f"MariaDB {version}", lambda count, _: on_mariadb(server, count))
    else:
        with servers.postgresql(durable=True) as server:
            version = await _version(server, "SHOW server_version")
            yield Place(
                f"PostgreSQL {version}", lambda count, delay: on_postgresql(server, count, delay)
            )


async def _version(server: str, question: str) -> str:
    try:
        engine = create_async_engine(server, poolclass=NullPool)
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(question)
            return str(found.scalar_one())
    except Exception as error:  # whatever a URL from outside may lead to
        raise servers.Unavailable(f"the server does not answer: {error}") from error


@asynccontextmanager
async def in_files(count: int, _delay: float) -> AsyncGenerator[list[str]]:
    """Those of SQLite, all in WAL mode: it is a property of the file, and not all peers set it."""
    with tempfile.TemporaryDirectory(prefix="eventmeta-") as directory:
        files = [Path(directory) / f"{i}.db" for i in range(count)]
        for file in files:
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        yield [f"sqlite+aiosqlite:///{file}" for file in files]


@asynccontextmanager
async def on_postgresql(server: str, count: int, delay: float) -> AsyncGenerator[list[str]]:
    """The databases of a PostgreSQL server: see `Place.databases`."""
    settings = postgresql_settings(delay)
    async with _databases(
        server,
        count,
        lambda name: [
            f"CREATE DATABASE {name} TEMPLATE template0",
            *(f"ALTER DATABASE {name} SET {each} = {value}" for each, value in settings.items()),
        ],
        lambda name: f"DROP DATABASE {name} WITH (FORCE)",
    ) as urls:
        yield urls


@asynccontextmanager
async def on_mariadb(server: str, count: int) -> AsyncGenerator[list[str]]:
    """The databases of a MariaDB server."""
    server = str(make_url(server).update_query_dict({"charset": "utf8mb4"}))
    async with _databases(
        server,
        count,
        lambda name: [f"CREATE DATABASE {name} CHARACTER SET utf8mb4"],
        lambda name: f"DROP DATABASE {name}",
    ) as urls:
        yield urls


@asynccontextmanager
async def _databases(
    server: str, count: int, create: Callable[[str], list[str]], drop: Callable[[str], str]
) -> AsyncGenerator[list[str]]:
    engine = create_async_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    names = [f"eventmeta_{secrets.token_hex(6)}" for _ in range(count)]
    async with engine.connect() as connection:
        for name in names:
            for statement in create(name):
                await connection.exec_driver_sql(statement)
    try:
        yield [
            make_url(server).set(database=name).render_as_string(hide_password=False)
            for name in names
        ]
    finally:
        async with engine.connect() as connection:
            for name in names:
                await connection.exec_driver_sql(drop(name))
