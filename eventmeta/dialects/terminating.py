"""Closing connections at once, without sending the server anything, as it may not answer."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool, StaticPool

from eventmeta.core.deadline import Deadline
from eventmeta.core.settle import run_to_completion

CLOSE_SECONDS = 1.0
"""Seconds that the server may take to answer when connections are closed."""

_DEADLINE = "eventmeta_deadline"
_OPEN = "eventmeta_open"


def watch(engine: AsyncEngine) -> None:
    """Close the connections of ``engine`` when the `Deadline` of their user is reached.

    This includes connections that the pool holds already. It is called once per engine.
    """
    shared = isinstance(engine.pool, StaticPool)
    connections: set[Any] = set()
    vars(engine.dialect)[_OPEN] = connections

    def checked_out(dbapi: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        connections.add(dbapi)
        deadline = Deadline.current()
        lent_within = cast("dict[str, Any]", entry.record_info)
        lent_within[_DEADLINE] = deadline
        if deadline is None:
            return

        def close() -> None:
            """Close the connection, unless it was given back, and may be lent to another user."""
            if entry.in_use and lent_within[_DEADLINE] is deadline:
                abort(dbapi.driver_connection, shared=shared)

        deadline.lend(close)

    def closed(dbapi: Any, *_: Any) -> None:
        connections.discard(dbapi)

    event.listen(engine.sync_engine, "checkout", checked_out)
    for name in ("close", "close_detached"):
        event.listen(engine.sync_engine, name, closed)


def is_exhausted(engine: AsyncEngine) -> bool:
    """Return whether the pool has lent every connection that it may have."""
    pool = engine.pool
    # The pool counts connections that it has not opened yet as a negative overflow.
    most = getattr(pool, "_max_overflow", -1)
    return isinstance(pool, QueuePool) and 0 <= most <= pool.overflow() and not pool.checkedin()


async def dispose(engine: AsyncEngine) -> None:
    """Close the pool's connections; at once if the server does not answer in time."""
    connections = tuple(vars(engine.dialect).get(_OPEN, ()))
    disposing = asyncio.ensure_future(engine.dispose())
    await run_to_completion(asyncio.wait([disposing], timeout=CLOSE_SECONDS))
    if not disposing.done():
        for dbapi in connections:
            abort(dbapi.driver_connection, shared=False)
        await run_to_completion(asyncio.wait([disposing], timeout=CLOSE_SECONDS))
    if disposing.done():
        disposing.result()


def abort(driver_connection: Any, *, shared: bool) -> None:
    """Close the socket of ``driver_connection``, or end the statement that its thread runs.

    Args:
        driver_connection: The connection of asyncpg, asyncmy or aiosqlite.
        shared: Whether others may use the same connection now. If so, nothing is done.
    """
    embedded = getattr(driver_connection, "_connection", None)  # of aiosqlite
    if isinstance(embedded, sqlite3.Connection):
        if not shared:
            with suppress(sqlite3.ProgrammingError):  # closed meanwhile
                embedded.interrupt()
        return
    transport = _transport_of(driver_connection)
    if transport is not None:
        transport.abort()
    else:
        terminate(driver_connection)


def abandon(driver_connection: Any) -> None:
    """Close the socket of a connection whose event loop is gone."""
    transport = _transport_of(driver_connection)
    terminate(driver_connection)
    # Do what the loop would have done soon after: tell the protocol, and close the socket.
    if transport is not None and getattr(transport, "_sock", None) is not None:
        with suppress(RuntimeError):
            transport._call_connection_lost(None)


def _transport_of(driver_connection: Any) -> Any:
    transport = getattr(driver_connection, "_transport", None)
    writer = getattr(driver_connection, "_writer", None)
    return transport or getattr(writer, "transport", None)


def terminate(driver_connection: Any) -> None:
    """Close a connection by its driver, without waiting for the end."""
    for name in ("terminate", "stop", "close"):  # of asyncpg, aiosqlite, asyncmy
        if hasattr(driver_connection, name):
            with suppress(RuntimeError):  # the loop is closed, and the transport cannot say goodbye
                getattr(driver_connection, name)()
            return
