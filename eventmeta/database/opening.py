"""Opening: the first connection to a database and its tables, made once for all callers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.database_errors import DatabaseBusy, DatabaseUnavailable
from eventmeta.core.deadline import AGAIN, Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.settle import retrieve_exception, run_to_completion
from eventmeta.database.create_tables import (
    check_tables_within,
    create_tables,
    open_tables,
    schema_sql,
)
from eventmeta.database.existing import StructuredTablesKept
from eventmeta.dialects.base import Dialect
from eventmeta.tables.tables import Tables

T = TypeVar("T")

_SCHEMA_LOCK = "eventmeta_schema_lock_{process}"
"""The name of the lock on an engine. A process has its own: nobody would release one that it has
inherited by a fork."""


class Opened(Protocol):
    """The database that is opened, as `Opening` needs it."""

    dialect: Dialect
    tables: Tables
    limits: Limits

    def run(
        self, work: Callable[[], Awaitable[T]], limits: Limits | None = None
    ) -> Coroutine[Any, Any, T]:
        """Run ``work``, and translate and retry its failures."""
        ...

    def expired(self, limits: Limits) -> EventMetaError:
        """Return the error of a call that did not end within ``limits``."""
        ...


class Opening:
    """The first connection to a database, and the creation of its tables.

    It remembers whether the database was found usable, and whether its tables were created.

    Attributes:
        creates_tables: Missing tables are created at the first call.
    """

    def __init__(self, database: Opened, keep_structured: Callable[[], None]) -> None:
        """Prepare to open ``database``.

        ``keep_structured`` is called if the database keeps structured tables and the options do
        not say whether to.
        """
        self.creates_tables = False
        self._database = database
        self._keep_structured = keep_structured
        self._connecting: asyncio.Task[None] | None = None
        self._connected = False
        self._created = False

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Return the task that makes the first connection; None while there is no such task."""
        return self._connecting

    def check_again(self) -> None:
        """Check the tables again at the next call, as they or the requirements have changed."""
        self._connected = self._created = False

    def tables_changed(self) -> None:
        """Look for missing tables again at the next call that creates them."""
        self._created = False

    async def connect(self, *, create: bool, limits: Limits | None = None) -> None:
        """Make the first connection, from which the dialect learns what server this is.

        Args:
            create: Create missing tables as well. `creates_tables` has the same effect.
            limits: How long to wait for the connection.

        Raises:
            DatabaseFailure: The database cannot be reached, or does not let us create tables.
        """
        if (create or self.creates_tables) and not self._created:
            await self.create_tables(unless_done=True)
        elif not self._connected:
            await self._first_connection(limits or self._database.limits)

    async def _first_connection(self, limits: Limits) -> None:
        """Connect once for all callers, who continue in the order in which they came.

        If the attempt of a caller with a shorter limit fails, this caller tries again.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.timeout
        while not self._connected:
            connecting = self._connecting
            is_own = connecting is None or connecting.get_loop() is not loop
            if connecting is None or is_own:
                left = limits._replace(timeout=max(end - loop.time(), 0))
                connecting = loop.create_task(self._connect(left), name="eventmeta-connect")
                connecting.add_done_callback(retrieve_exception)
                self._connecting = connecting
            try:
                await asyncio.wait([connecting], timeout=max(end - loop.time(), 0) + AGAIN)
            finally:
                if connecting.done() and self._connecting is connecting:
                    self._connecting = None
            if not connecting.done():
                raise self._database.expired(limits)
            failure = None if connecting.cancelled() else connecting.exception()
            impatient = isinstance(failure, DatabaseUnavailable | DatabaseBusy)
            if failure is not None and (is_own or not impatient or loop.time() >= end):
                raise failure

    async def _connect(self, limits: Limits) -> None:
        database = self._database
        await self._following(lambda: database.run(self._open, limits))
        self._connected = True

    async def _open(self) -> None:
        await open_tables(self._database.dialect, self._database.tables)

    async def _following(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work``, once more if it finds that the database keeps structured tables."""
        try:
            return await work()
        except StructuredTablesKept:
            self._keep_structured()
            return await work()

    async def connect_within(self, connection: AsyncConnection, limits: Limits) -> None:
        """Check the tables in the caller's transaction, unless they were checked before."""
        if not self._connected:
            database = self._database

            async def check() -> None:
                await check_tables_within(database.dialect, database.tables, connection)

            await self._following(lambda: database.run(check, limits))
            self._connected = True

    async def create_tables(self, *, unless_done: bool = False, turn_on: bool = False) -> None:
        """Add the missing tables, columns, indexes, triggers and view.

        Args:
            unless_done: Do nothing if this was done before.
            turn_on: Keep structured tables from now on, in a database that does not.
        """
        database = self._database
        engine = database.dialect.engine.sync_engine
        name = _SCHEMA_LOCK.format(process=os.getpid())
        lock = vars(engine).setdefault(name, threading.Lock())
        limits = database.limits.long
        end = time.monotonic() + limits.timeout
        while not lock.acquire(blocking=False):  # polls, as callers may be in several event loops
            if time.monotonic() > end:
                raise DatabaseBusy("another call creates tables on this engine, and does not end")
            await asyncio.sleep(0.01)
        try:
            if not (unless_done and self._created):

                async def create() -> None:
                    await create_tables(database.dialect, database.tables, turn_on=turn_on)

                # Drivers leak a connection if they are cancelled while they make it.
                await run_to_completion(self._following(lambda: database.run(create, limits)))
                self._connected = self._created = True
        finally:
            lock.release()

    async def schema_sql(self, *, turn_on: bool = False) -> str:
        """Return the statements that `create_tables` would run, as a script."""
        database = self._database

        async def script() -> str:
            return await schema_sql(database.dialect, database.tables, turn_on=turn_on)

        return await run_to_completion(self._following(lambda: database.run(script)))
