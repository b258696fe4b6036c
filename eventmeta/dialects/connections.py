"""Connections of the engine's pool, lent to the store for one batch at a time."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.terminating import abandon, terminate, watch

T = TypeVar("T")

Prepare = Callable[[Any], Any]
Work = Callable[[Any, Any], Awaitable[T]]

_KEY = "eventmeta"
_PREPARE = "eventmeta_prepare"
_CONNECTIONS = "eventmeta_connections"
_LISTENERS = 2
"""How many listeners of ours a pool has for "checkout"."""


class _Opened(NamedTuple):
    """Where a connection was opened, and what is known of it."""

    process: int
    loop: weakref.ref[asyncio.AbstractEventLoop]
    facts: Any


_inherited: list[Any] = []
"""Connections of the process that this one was forked from: to close them would break them there.

Even their end as garbage would, for an event loop's list of sockets is shared with that process.
"""


def configure(engine: AsyncEngine, prepare: Prepare, *, loop_bound: bool) -> None:
    """Have every connection of the pool of ``engine`` prepared before its next use.

    Also connections that the pool holds already. Engines with other execution options share the
    pool, which is configured once.

    Args:
        engine: The engine, the app's own included.
        prepare: Sets a DBAPI connection up, and returns what `lend` is to know of it. It must not
            hold the engine, or the engine and its connections would never be garbage.
        loop_bound: The driver's connections belong to the event loop that opened them. One opened
            in another loop is replaced, so that one engine serves several loops in turn.
    """
    shared = vars(engine.dialect)
    if _PREPARE in shared:
        return
    shared[_PREPARE] = prepare
    connections: dict[Any, _Opened] = shared.setdefault(_CONNECTIONS, {})

    def checked_out(dbapi: Any, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        loop = asyncio.get_running_loop()
        opened: _Opened | None = entry.info.get(_KEY)
        if opened is None:
            connections[dbapi] = _prepare(dbapi, entry.info, prepare)
        elif opened.process != os.getpid():
            connections.pop(dbapi, None)
            _inherited.append(dbapi)
            entry.dbapi_connection = proxy.dbapi_connection = None  # type: ignore[misc]
            raise DisconnectionError("opened in another process")
        elif loop_bound and opened.loop() is not loop:
            abandon(entry.driver_connection)
            raise DisconnectionError("opened in another event loop")

    def closing(dbapi: Any, entry: ConnectionPoolEntry) -> None:
        opened: _Opened | None = entry.info.get(_KEY)
        connections.pop(dbapi, None)
        if opened is None or opened.process != os.getpid():
            return
        if loop_bound and opened.loop() is not _running_loop():
            abandon(dbapi.driver_connection)

    event.listen(engine.sync_engine, "checkout", checked_out)
    event.listen(engine.sync_engine, "close", closing)
    watch(engine)


def keep_inherited(engine: AsyncEngine) -> None:
    """Keep an engine of the process that this one was forked from, untouched, for good."""
    _inherited.append(engine)


def close_with(engine: AsyncEngine) -> None:
    """Have the connections of ``engine`` closed once it is garbage."""
    connections: dict[Any, _Opened] = vars(engine.dialect).setdefault(_CONNECTIONS, {})
    weakref.finalize(engine.sync_engine, _close, connections).atexit = False


def _close(connections: dict[Any, _Opened]) -> None:
    """Close connections that no pool holds any more, in the event loop of each if that is alive."""
    for dbapi, opened in connections.items():
        loop = opened.loop()
        if opened.process != os.getpid():
            _inherited.append(dbapi)
        elif loop is None or not loop.is_running():
            abandon(dbapi.driver_connection)
        else:
            with suppress(RuntimeError):  # it has ended this moment
                loop.call_soon_threadsafe(terminate, dbapi.driver_connection)
    connections.clear()


def _prepare(dbapi: Any, info: dict[Any, Any], prepare: Prepare) -> _Opened:
    loop = asyncio.get_running_loop()
    info[_KEY] = opened = _Opened(os.getpid(), weakref.ref(loop), prepare(dbapi))
    return opened


async def driver_of(connection: AsyncConnection) -> tuple[Any, Any]:
    """Return the driver's connection behind one of SQLAlchemy's, and what is known of it."""
    raw = await connection.get_raw_connection()
    if _KEY not in raw.info:  # it was checked out before the pool was configured
        prepare = vars(connection.dialect)[_PREPARE]
        await greenlet_spawn(_prepare, raw.dbapi_connection, raw.info, prepare)
    return raw.driver_connection, raw.info[_KEY].facts


_EVENTS, _DRIVER_EVENTS = (
    tuple(name for name in dir(kind) if not name.startswith("_") and name not in without)
    for kind, without in (
        (ConnectionEvents, ("dispatch", "engine_disposed")),
        (DialectEvents, ("dispatch",)),
    )
)
_OF_TRANSACTIONS = ("postgresql_readonly", "postgresql_deferrable")
"""Options of an engine that only SQLAlchemy's own transactions heed."""


def is_watched(engine: Engine) -> bool:
    """Return whether the app listens to what ``engine`` executes, or has it logged.

    What goes around SQLAlchemy would then go unnoticed.
    """
    inside: Any = engine  # what SQLAlchemy itself looks at before it calls a listener
    return bool(
        inside._should_log_info()
        or (inside.dialect._has_events and _has_listeners(engine.dialect.dispatch, _DRIVER_EVENTS))
        or (inside._has_events and _has_listeners(engine.dispatch, _EVENTS))
        or any(map(engine.get_execution_options().get, _OF_TRANSACTIONS))
    )


def _has_listeners(dispatch: Any, names: Iterable[str]) -> bool:
    return any(_is_of_the_app(name, each) for name in names for each in getattr(dispatch, name))


def _is_of_the_app(name: str, listener: Any) -> bool:
    """Return whether ``listener`` is neither ours nor SQLAlchemy's, which sets isolation levels."""
    package = getattr(listener, "__module__", "").partition(".")[0]
    return not (package == "eventmeta" or (name == "engine_connect" and package == "sqlalchemy"))


def is_watched_on(connection: AsyncConnection) -> bool:
    """Return whether the app listens to what ``connection`` executes, or has it logged."""
    sync: Any = connection.sync_connection
    return bool(sync.__dict__.get("_has_events") or sync._echo or is_watched(sync.engine))


def runs_code_of_the_app(engine: Engine) -> bool:
    """Return whether a transaction of ``engine`` calls functions of the app.

    They may depend on whose request it is, as those do that name the user to the database.
    """
    return is_watched(engine) or len(engine.pool.dispatch.checkout) > _LISTENERS


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class StepAside(Exception):
    """The app has begun a transaction on a connection as it was checked out."""


async def with_driver_connection(
    engine: AsyncEngine,
    work: Work[T],
    is_lost: Callable[[BaseException], bool],
    has_begun: Callable[[Any], bool],
) -> T:
    """Await ``work`` on the driver's own connection, on which it leaves no transaction open.

    ``work`` is given the connection, and what `configure` found out about it.

    After a failure the connection is reset as the pool does it; after a cancellation, or when
    ``is_lost`` says that the connection is gone, it is thrown away. But one that is shared, because
    it is all that holds an in-memory database, is left as it is: what its thread has begun, it
    carries out or rolls back by itself before the next work. All of it ends soon after the
    `Deadline` that it is done within.

    Raises:
        StepAside: ``has_begun`` says that there is a transaction already; nothing was done.
    """
    shared = isinstance(engine.pool, StaticPool)
    lent: PoolProxiedConnection | None = None

    def carry_out() -> T:
        """In one greenlet from end to end: to begin another costs more than what the pool does."""
        nonlocal lent
        lent = connection = engine.sync_engine.raw_connection()
        driver = connection.driver_connection
        if not shared and has_begun(driver):
            raise StepAside
        result = await_only(work(driver, connection.info[_KEY].facts))
        lent = None
        # Nothing is open: the pool's own reset would cost SQLite a thread hop.
        connection._close_special(transaction_reset=True)
        return result

    try:
        return await greenlet_spawn(carry_out)
    except BaseException as error:
        if lent is not None:
            lost = is_lost(error) or (isinstance(error, asyncio.CancelledError) and not shared)
            await run_to_completion(greenlet_spawn(_give_back, lent, lost=lost, shared=shared))
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
