"""The connections of one kind of database: their address, and how they are closed."""

from __future__ import annotations

from abc import ABC
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import StaticPool

from eventmeta.dialects.executing import UNBUFFERED
from eventmeta.dialects.statement import translated_schema
from eventmeta.dialects.terminating import abort, dispose, is_exhausted

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class ConnectingDialect(ABC):  # noqa: B024
    """The connections of one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.schema = translated_schema(engine.sync_engine.get_execution_options())
        self.own_engine = engine.execution_options(
            schema_translate_map=self.translation, **UNBUFFERED
        )

    @property
    def translation(self) -> dict[str | None, str | None]:
        """Return the schema of the store's tables, as a ``schema_translate_map`` of SQLAlchemy."""
        return {None: self.schema} if self.schema is not None else {}

    def quoted(self, name: str) -> str:
        """Return ``name`` with its schema, in quotes, for a statement written by hand."""
        quote = self.engine.dialect.identifier_preparer.quote_identifier
        return quote(name) if self.schema is None else f"{quote(self.schema)}.{quote(name)}"

    def named(self, name: str) -> str:
        """Return ``name`` with its schema, in quotes if it needs them."""
        quote = self.engine.dialect.identifier_preparer.quote
        return quote(name) if self.schema is None else f"{quote(self.schema)}.{quote(name)}"

    @property
    def address(self) -> str:
        """Return the address: ``host:port/database``, or the file. It never has the password."""
        url = self.engine.url
        if url.get_backend_name() == "sqlite":
            return url.database or "the database in memory"
        host = url.host or url.query.get("host") or url.query.get("unix_socket") or "localhost"
        port = url.port or url.query.get("port") or _DEFAULT_PORTS.get(url.get_backend_name())
        return f"{host}:{port}/{url.database or ''}"

    @property
    def is_shared(self) -> bool:
        """Return whether the whole process, the app included, has one and the same connection."""
        return isinstance(self.engine.pool, StaticPool)

    @property
    def has_lent_all(self) -> bool:
        """Return whether the pool has lent every connection that it may have."""
        return is_exhausted(self.engine)

    async def abort(self, connection: AsyncConnection) -> None:
        """Close a connection of SQLAlchemy's at once; its open transaction is rolled back."""
        lent = await connection.get_raw_connection()
        self.abort_driver_connection(lent.driver_connection)
        await connection.invalidate()

    def abort_driver_connection(self, driver_connection: Any) -> None:
        """Close the driver's own connection at once, without sending the server anything."""
        abort(driver_connection, shared=self.is_shared)

    async def dispose(self) -> None:
        """Close the pool's connections, even if the server does not answer."""
        await dispose(self.engine)
