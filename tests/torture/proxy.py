"""A network that fails: a socket before a database server's own."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import URL, make_url

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Passes on what clients and the server say, until it is told to cut or to be silent."""

    def __init__(self, server: URL, choose: random.Random) -> None:
        self._server = server
        self._choose = choose
        self._writers: set[asyncio.StreamWriter] = set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break about half of the connections, without a farewell."""
        for writer in tuple(self._writers):
            if self._choose.random() < 0.5:
                writer.transport.abort()

    async def fall_silent(self, seconds: float) -> None:
        """Pass on nothing for so long."""
        self._speaks.clear()
        await asyncio.sleep(seconds)
        self._speaks.set()

    async def _connect(self) -> Streams:
        query = self._server.query
        path = query.get("unix_socket")
        if path is None and (folder := query.get("host")):
            path = f"{folder}/.s.PGSQL.{query.get('port', 5432)}"
        if path is not None:
            return await asyncio.open_unix_connection(str(path))
        return await asyncio.open_connection(self._server.host, self._server.port)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        try:
            there, back = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._speaks.wait()
                target.write(data)
                await target.drain()
        target.transport.abort()
        self._writers.discard(target)

    async def close(self) -> None:
        """Break every connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(url: str, choose: random.Random) -> AsyncGenerator[tuple[str, Proxy]]:
    """Yield a URL that leads to ``url`` through a `Proxy`, and that."""
    server = make_url(url)
    proxy = Proxy(server, choose)
    with tempfile.TemporaryDirectory(prefix="eventmeta-") as folder:
        # The name that PostgreSQL's clients look for; MySQL's take any.
        path = Path(folder) / ".s.PGSQL.5432"
        listening = await asyncio.start_unix_server(proxy.accept, path)
        query = (
            {"unix_socket": str(path), "charset": "utf8mb4"}
            if server.get_backend_name() == "mysql"
            else {"host": folder, "port": "5432"}
        )
        try:
            yield server.set(host=None, port=None, query=query).render_as_string(False), proxy
        finally:
            listening.close()
            await proxy.close()
