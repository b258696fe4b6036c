"""The databases that every test of behaviour runs on, each fresh and empty.

``with Backends() as backends:`` and then ``async with backends["postgresql"].database() as url:``.
A server is started when its backend is first asked for, and stopped at the end of the outer block.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.support import servers

NAMES = ("sqlite-file", "sqlite-memory", "postgresql", "mariadb")
SQLITE = ("sqlite-file", "sqlite-memory")
SERVERS = ("postgresql", "mariadb")
PERSISTENT = ("sqlite-file", *SERVERS)
"""Those whose databases several processes can reach."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of database."""

    name: str
    database: Callable[[], AbstractAsyncContextManager[str]]
    """Makes a fresh empty database, and drops it at the end; the value is its URL."""

    @property
    def is_server(self) -> bool:
        return self.name in SERVERS

    def __str__(self) -> str:
        return self.name


class Backends:
    """All backends; keeps the servers that were started."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._found: dict[str, Backend | servers.Unavailable] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Backend:
        """The backend of this name; raises :class:`servers.Unavailable` if it cannot be had."""
        if name not in self._found:
            self._found[name] = self._find(name)
        found = self._found[name]
        if isinstance(found, servers.Unavailable):
            raise found
        return found

    @property
    def unavailable(self) -> dict[str, str]:
        """Why each backend that was asked for in vain cannot be had."""
        return {
            name: str(found)
            for name, found in self._found.items()
            if isinstance(found, servers.Unavailable)
        }

    def _find(self, name: str) -> Backend | servers.Unavailable:
        try:
            return Backend(name, self._databases(name))
        except servers.Unavailable as error:
            return error

    def _databases(self, name: str) -> Callable[[], AbstractAsyncContextManager[str]]:
        match name:
            case "sqlite-file":
                return _sqlite_file
            case "sqlite-memory":
                return _sqlite_memory
            case "postgresql":
                server = make_url(self._stack.enter_context(servers.postgresql()))
                return lambda: _on_server(server, _create_postgres, _drop_postgres)
            case "mariadb":
                server = make_url(self._stack.enter_context(servers.mariadb()))
                server = server.update_query_dict({"charset": "utf8mb4"})
                return lambda: _on_server(server, _create_mysql, _drop_mysql)
            case _:
                raise KeyError(name)


@asynccontextmanager
async def _sqlite_file() -> AsyncGenerator[str]:
    with tempfile.TemporaryDirectory(prefix="eventmeta-") as directory:
        yield f"sqlite+aiosqlite:///{Path(directory) / 'test.db'}"


@asynccontextmanager
async def _sqlite_memory() -> AsyncGenerator[str]:
    yield "sqlite+aiosqlite://"


Change = Callable[[AsyncConnection, str], Awaitable[None]]


@asynccontextmanager
async def _on_server(server: URL, create: Change, drop: Change) -> AsyncGenerator[str]:
    name = f"eventmeta_{secrets.token_hex(6)}"
    await _administer(server, create, name)
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        await _administer(server, drop, name)


async def _administer(server: URL, change: Change, name: str) -> None:
    """One change on a connection of its own, so that no test is beside one that stays open."""
    engine = create_async_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await change(connection, name)


async def _create_postgres(connection: AsyncConnection, name: str) -> None:
    """With a linguistic collation where the server has one: relying on byte order must show."""
    linguistic = await connection.scalar(
        text(
            "SELECT current_setting('server_version_num')::int >= 150000"
            " AND EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i')"
        )
    )
    locale = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'" if linguistic else ""
    await connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0 {locale}"))


async def _drop_postgres(connection: AsyncConnection, name: str) -> None:
    await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


async def _create_mysql(connection: AsyncConnection, name: str) -> None:
    await connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))


async def _drop_mysql(connection: AsyncConnection, name: str) -> None:
    """Ends the connections first that are left, as their locks would make us wait."""
    left = await connection.scalars(
        text("SELECT id FROM information_schema.processlist WHERE db = :name"), {"name": name}
    )
    for number in left.all():
        with suppress(DBAPIError):  # it has ended by itself
            await connection.execute(text(f"KILL {int(number)}"))
    await connection.execute(text(f"DROP DATABASE {name}"))
