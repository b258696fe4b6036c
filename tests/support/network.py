"""A network between the store and a server, which can fall silent or refuse connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy.engine import make_url

PG_SOCKET = ".s.PGSQL.5432"


class Network:
    """Carries what is sent to a server, until it is silent: then everything sent is lost.

    Connections can be made all the same, for it is not the server that accepts them.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.is_silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL by which the server is reached through this network."""
        gone = ["host", "port", "unix_socket"]
        password = "secret" if self._url.get_backend_name() == "postgresql" else None
        url = self._url.difference_update_query(gone).set(
            host="127.0.0.1", port=self.port, password=password
        )
        return url.render_as_string(hide_password=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}/{self._url.database}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on; those that are there are cut."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._start(self._carry(reader, writer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._connect()
        self._writers.add(server_writer)
        self._start(self._pump(server_reader, writer))
        await self._pump(reader, server_writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = self._url.query
        path = query.get("unix_socket")
        if path is None and str(query.get("host", "")).startswith("/"):
            path = f"{query['host']}/{PG_SOCKET}"
        if path is not None:
            return await asyncio.open_unix_connection(str(path))
        assert self._url.host
        return await asyncio.open_connection(self._url.host, self._url.port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not self.is_silent:
                    writer.write(data)
                    await writer.drain()
        if not self.is_silent:
            writer.close()


@asynccontextmanager
async def network(url: str) -> AsyncGenerator[Network]:
    """A network to the server of ``url``."""
    found = Network(url)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
