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
"""The number of the store's own listeners for "checkout" on a pool."""


class _Opened(NamedTuple):
    """The process and event loop in which a connection was opened, and the facts about it."""

    process: int
    loop: weakref.ref[asyncio.AbstractEventLoop]
    facts: Any


_inherited: list[Any] = []
"""Connections of the process from which this one was forked.

Closing them here would break them there. Even garbage collection would, because an event loop's
list of sockets is shared with that process.
"""


def configure(engine: AsyncEngine, prepare: Prepare, *, loop_bound: bool) -> None:
    """Prepare every connection of the pool of ``engine`` before its next use.

    This includes connections that the pool holds already. Engines with other execution options
    share the pool, which is configured once.

    Args:
        engine: The engine, the app's own included.
        prepare: Sets a DBAPI connection up, and returns the facts that `with_driver_connection`
            passes on. It must not hold the engine, or the engine and its connections would never be
            garbage.
        loop_bound: Whether the driver's connections belong to the event loop that opened them. If
            so, a connection of another loop is replaced, so that one engine serves several loops in
            turn.
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
    """Keep an engine of the process from which this one was forked, unused and for ever."""
    _inherited.append(engine)


def close_with(engine: AsyncEngine) -> None:
    """Close the connections of ``engine`` once the engine is garbage."""
    connections: dict[Any, _Opened] = vars(engine.dialect).setdefault(_CONNECTIONS, {})
    weakref.finalize(engine.sync_engine, _close, connections).atexit = False


def _close(connections: dict[Any, _Opened]) -> None:
    """Close connections that no pool holds any more, each in its event loop if that still runs."""
    for dbapi, opened in connections.items():
        loop = opened.loop()
        if opened.process != os.getpid():
            _inherited.append(dbapi)
        elif loop is None or not loop.is_running():
            abandon(dbapi.driver_connection)
        else:
            with suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(terminate, dbapi.driver_connection)
    connections.clear()


def _prepare(dbapi: Any, info: dict[Any, Any], prepare: Prepare) -> _Opened:
    loop = asyncio.get_running_loop()
    info[_KEY] = opened = _Opened(os.getpid(), weakref.ref(loop), prepare(dbapi))
    return opened


async def driver_of(connection: AsyncConnection) -> tuple[Any, Any]:
    """Return the driver's connection behind one of SQLAlchemy's, and the facts about it."""
    raw = await connection.get_raw_connection()
    if _KEY not in raw.info:  # the connection was checked out before the pool was configured
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
"""Options of an engine that only SQLAlchemy's own transactions obey."""


def is_watched(engine: Engine) -> bool:
    """Return whether the app listens to the statements of ``engine``, or has them logged.

    The app would not notice statements that go around SQLAlchemy.
    """
    inside: Any = engine  # the attributes that SQLAlchemy reads before it calls a listener
    return bool(
        inside._should_log_info()
        or (inside.dialect._has_events and _has_listeners(engine.dialect.dispatch, _DRIVER_EVENTS))
        or (inside._has_events and _has_listeners(engine.dispatch, _EVENTS))
        or any(map(engine.get_execution_options().get, _OF_TRANSACTIONS))
    )


def _has_listeners(dispatch: Any, names: Iterable[str]) -> bool:
    return any(_is_of_the_app(name, each) for name in names for each in getattr(dispatch, name))


def _is_of_the_app(name: str, listener: Any) -> bool:
    """Return whether ``listener`` is the app's: not ours, nor SQLAlchemy's for isolation levels."""
    package = getattr(listener, "__module__", "").partition(".")[0]
    return not (package == "eventmeta" or (name == "engine_connect" and package == "sqlalchemy"))


def is_watched_on(connection: AsyncConnection) -> bool:
    """Return whether the app listens to the statements of ``connection``, or has them logged."""
    sync: Any = connection.sync_connection
    return bool(sync.__dict__.get("_has_events") or sync._echo or is_watched(sync.engine))


def runs_code_of_the_app(engine: Engine) -> bool:
    """Return whether a transaction of ``engine`` calls functions of the app.

    Such functions may depend on whose request it is, for example if they tell the database the
    user's name.
    """
    heard: Any = engine.pool.dispatch
    return bool(
        is_watched(engine) or len(heard.checkout) > _LISTENERS or heard.checkin or heard.reset
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class StepAside(Exception):
    """The app began a transaction on a connection when it was checked out."""


async def with_driver_connection(
    engine: AsyncEngine,
    work: Work[T],
    is_lost: Callable[[BaseException], bool],
    has_begun: Callable[[Any], bool],
) -> T:
    """Await ``work`` on the driver's own connection, on which it must leave no transaction open.

    ``work`` is given the connection and the facts that `configure`'s ``prepare`` returned.

    After a failure the connection is reset as the pool does it. After a cancellation, or if
    ``is_lost`` says that the connection is gone, it is thrown away. But a shared connection is left
    as it is, because it alone holds an in-memory database: before its next work, its thread
    completes or rolls back by itself what it has begun. All of this ends soon after the `Deadline`
    within which it is done.

    Raises:
        StepAside: A transaction was open already, by ``has_begun``; nothing was done.
    """
    shared = isinstance(engine.pool, StaticPool)
    lent: PoolProxiedConnection | None = None

    def carry_out() -> T:
        """Do all in one greenlet: beginning another costs more than the pool's own work."""
        nonlocal lent
        lent = connection = engine.sync_engine.raw_connection()
        driver = connection.driver_connection
        if not shared and has_begun(driver):
            raise StepAside
        result = await_only(work(driver, connection.info[_KEY].facts))
        lent = None
        # Nothing is open, so the pool need not reset it, which would cost SQLite a thread hop.
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
    """Give the connection back with nothing open; suppress errors, which the pool would print."""
    if not lost and not shared:
        try:
            connection.rollback()
        except BaseException:  # also a cancellation, if the event loop is about to end
            lost = True
    if lost:
        connection.invalidate()
    connection._close_special(transaction_reset=True)


def connections_to_spare(engine: AsyncEngine, most: int) -> int:
    """Return how many connections may wait for locks: a third of the pool, but at ``most``."""
    pool = engine.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    if not isinstance(pool, QueuePool) or pool.size() == 0 or overflow < 0:
        return most  # the pool has no limit
    return min(most, (pool.size() + overflow) // 3)
