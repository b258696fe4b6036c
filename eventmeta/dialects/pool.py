"""Connections of the engine's pool, lent to the store for one batch at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from eventmeta.dialects.terminating import abandon, watch
from eventmeta.settle import settle

T = TypeVar("T")

Configure = Callable[[Any], None]

_KEY = "eventmeta"


def configure(engine: AsyncEngine, prepare: Configure, *, loop_bound: bool) -> None:
    """Have every connection of ``engine`` prepared before its next use.

    Also connections that the pool holds already. To be called once per engine.

    Args:
        engine: The engine, the app's own included.
        prepare: Runs the statements that set a DBAPI connection up.
        loop_bound: The driver's connections belong to the event loop that opened them. One opened
            in another loop is replaced, so that one engine serves several loops in turn.
    """

    def checked_out(dbapi: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        loop = asyncio.get_running_loop()
        opened_in = entry.info.get(_KEY)
        if opened_in is None:
            prepare(dbapi)
            entry.info[_KEY] = weakref.ref(loop)
        elif loop_bound and opened_in() is not loop:
            abandon(entry.driver_connection)
            raise DisconnectionError("opened in another event loop")

    def closing(dbapi: Any, entry: ConnectionPoolEntry) -> None:
        opened_in = entry.info.get(_KEY)
        if loop_bound and opened_in is not None and opened_in() is not _running_loop():
            abandon(dbapi.driver_connection)

    event.listen(engine.sync_engine, "checkout", checked_out)
    event.listen(engine.sync_engine, "close", closing)
    watch(engine)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def lend(
    engine: AsyncEngine,
    work: Callable[[Any], Awaitable[T]],
    is_lost: Callable[[BaseException], bool],
) -> T:
    """Await ``work`` on the driver's own connection, on which it leaves no transaction open.

    After a failure the connection is reset as the pool does it; after a cancellation, or when
    ``is_lost`` says that the connection is gone, it is thrown away. But one that is shared, because
    it is all that holds an in-memory database, is left as it is: what its thread has begun, it
    carries out or rolls back by itself before the next work. All of it ends soon after the
    `Deadline` that it is done within.
    """
    shared = isinstance(engine.pool, StaticPool)
    lent: PoolProxiedConnection | None = None

    def carry_out() -> T:
        """In one greenlet from end to end: to begin another costs more than what the pool does."""
        nonlocal lent
        lent = connection = engine.sync_engine.raw_connection()
        result = await_only(work(connection.driver_connection))
        lent = None
        # Nothing is open: the pool's own reset would cost SQLite a thread hop.
        connection._close_special(transaction_reset=True)
        return result

    try:
        return await greenlet_spawn(carry_out)
    except BaseException as error:
        if lent is not None:
            lost = is_lost(error) or (isinstance(error, asyncio.CancelledError) and not shared)
            await settle(greenlet_spawn(_give_back, lent, lost=lost, shared=shared))
        raise


def _give_back(connection: PoolProxiedConnection, *, lost: bool, shared: bool) -> None:
    """With nothing left open; quietly, where the pool's own reset prints what goes wrong."""
    if not lost and not shared:
        try:
            connection.rollback()
        except BaseException:  # cancelled, too, where the event loop is coming to its end
            lost = True
    if lost:
        connection.invalidate()
    connection._close_special(transaction_reset=True)


def connections_to_spare(engine: AsyncEngine, most: int) -> int:
    """Return how many connections may wait for locks: up to a third of the pool, at ``most``."""
    pool = engine.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    if not isinstance(pool, QueuePool) or pool.size() == 0 or overflow < 0:
        return most  # it has no bound
    return min(most, (pool.size() + overflow) // 3)
