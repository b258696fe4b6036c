"""Where it is measured: databases as durable as in production, found as the tests find them."""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests import servers

BACKENDS = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Databases:
    """Fresh empty databases of one server.

    Attributes:
        server: Its name and version.
        urls: One for each peer.
    """

    server: str
    urls: list[str]


@asynccontextmanager
async def databases(backend: str, count: int) -> AsyncGenerator[Databases]:
    """``count`` databases, dropped at the end.

    Raises:
        tests.servers.Unavailable: The server cannot be had.
    """
    if backend == "sqlite":
        with tempfile.TemporaryDirectory(prefix="eventmeta-") as directory:
            files = [Path(directory) / f"{i}.db" for i in range(count)]
            urls = [f"sqlite+aiosqlite:///{file}" for file in files]
            yield Databases(f"SQLite {sqlite3.sqlite_version}", urls)
    else:
        with servers.postgresql(durable=True) as server:
            async with _on_postgresql(server, count) as found:
                yield found


@asynccontextmanager
async def _on_postgresql(server: str, count: int) -> AsyncGenerator[Databases]:
    engine = create_async_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    names = [f"eventmeta_{secrets.token_hex(6)}" for _ in range(count)]
    async with engine.connect() as connection:
        version = (await connection.exec_driver_sql("SHOW server_version")).scalar_one()
        for name in names:
            await connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        urls = [
            make_url(server).set(database=name).render_as_string(hide_password=False)
            for name in names
        ]
        yield Databases(f"PostgreSQL {version}", urls)
    finally:
        async with engine.connect() as connection:
            for name in names:
                await connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
