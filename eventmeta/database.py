"""One engine's store of events, shared by every session and store that uses the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from eventmeta.access import Reach
from eventmeta.commands import Command
from eventmeta.deadline import Deadline, Limits
from eventmeta.dialects import check_engine, dialect_of
from eventmeta.dialects.pool import connections_to_spare
from eventmeta.dialects.statement import Query, Row
from eventmeta.drafts import Outcome
from eventmeta.encoding import Order
from eventmeta.errors import EventMetaError, StoreClosed
from eventmeta.events import RecordedEvent
from eventmeta.lanes import MAX_IN_LINE
from eventmeta.log import EventLog
from eventmeta.opening import Opening
from eventmeta.per_loop import PerLoop
from eventmeta.reach import Ownership
from eventmeta.read_statements import ReadStatements
from eventmeta.reader import Lookup, Reader, query_for
from eventmeta.registry import Registry
from eventmeta.signals import Signals
from eventmeta.table_names import TableNames
from eventmeta.tables import define_tables
from eventmeta.writer import Writer
from projections import AnyProjection

logger = logging.getLogger("eventmeta")

_ATTRIBUTE = "eventmeta_databases"
_Key = tuple[TableNames, str | None]


class Database:
    """The log, the writer and the reader of one engine and one set of tables.

    An engine may serve several event loops, one after another; each has its own writer and reader.
    """

    def __init__(self, engine: AsyncEngine, names: TableNames) -> None:
        self.engine = engine
        self.dialect = dialect_of(engine)
        self._names = names
        self.tables = define_tables(names, self.dialect.event_keys)
        self.log = EventLog(self.dialect, self.tables)
        self.opening = Opening(self.log, self._follow)
        self.registry = Registry(self.tables, self.dialect)
        self.appended = Signals()
        self.applied = Signals()
        self.gives_hints = False
        self._hint: asyncio.Task[None] | None = None
        self.reads = self._reads()
        self._writer = PerLoop(self._make_writer)
        self._reader = PerLoop(self._make_reader)
        self._closed = False

    @classmethod
    def of(cls, engine: AsyncEngine, names: TableNames | None = None) -> Database:
        """The one database of ``engine`` with these tables, found or made.

        It is kept by the engine itself, and goes with it. Once the engine translates schemas in
        another way, those that are opened from then on are others.
        """
        check_engine(engine)
        names = names or TableNames()
        key = (names, dialect_of(engine).schema)
        found: dict[_Key, Database] = vars(engine.sync_engine).setdefault(_ATTRIBUTE, {})
        if key not in found:
            found[key] = cls(engine, names)
        return found[key]

    def _reads(self) -> dict[Reach, ReadStatements]:
        streams, events = self.tables.streams, self.tables.events
        return {
            reach: ReadStatements(self.tables, self.dialect, Ownership(streams, events, reach))
            for reach in Reach
        }

    def _follow(self) -> None:
        """Keep structured tables, as the database does, though nobody said so."""
        names = replace(self._names, structured_metadata=True)
        tables = define_tables(names, self.dialect.event_keys)
        self.registry.follow(tables)
        self.tables = replace(tables, inline=self.registry.inline_folded)
        self.log.maintain(self.tables, self.registry.inline_applied)
        self.reads = self._reads()

    def register(self, projection: AnyProjection, *, inline: bool) -> None:
        """Have a projection kept up to date: see `MetadataStore.register`."""
        if self.registry.add(projection, inline=inline):
            self.tables = replace(self.tables, inline=self.registry.inline_folded)
            self.log.maintain(self.tables, self.registry.inline_applied)
            self.opening.tables_changed()

    async def create_tables(self, *, turn_on: bool = False) -> None:
        """Add what is missing of the tables; see `Opening.create_tables`."""
        await self.opening.create_tables(turn_on=turn_on)
        if turn_on:  # those on this engine that are opened already are to see it
            found: dict[_Key, Database] = vars(self.engine.sync_engine).get(_ATTRIBUTE, {})
            for other in found.values():
                other.opening.check_again()

    async def submit(
        self,
        command: Command,
        connection: AsyncConnection | AsyncSession | None = None,
        limits: Limits | None = None,
    ) -> RecordedEvent | None:
        """Carry out ``command``: its event, or None if there was nothing to do.

        Args:
            command: What to do.
            connection: Do it in this transaction of the caller's. It becomes durable and visible
                with the caller's commit, and vanishes with a rollback.
            limits: How long the caller waits.

        Raises:
            EventMetaError: It was rejected or failed; nothing was changed.
        """
        self.check_open()
        limits = limits or self.log.limits
        connection = await own_connection(connection)
        if connection is not None:
            self.dialect.check_connection(connection)
            await self.opening.connect_within(connection, limits)
            outcome = await self.log.commit_within(connection, command, limits)
        else:
            outcome = await self._writer.here.submit(command, limits)
        if isinstance(outcome, EventMetaError):
            raise outcome
        return outcome

    def fetch(
        self, read: Query | Lookup, limits: Limits | None = None, /, **request: Any
    ) -> Awaitable[Sequence[Row]]:
        """The rows of ``read``, for ``request``; it sees every write acknowledged before."""
        self.check_open()
        limits = limits or self.log.limits
        if self.dialect.is_within:  # those in the reader may have to wait for the end of it
            return self.log.fetch(query_for(read, [request]), limits)
        return self._reader.here.fetch(read, limits, **request)

    def check_open(self) -> None:
        """Raise an error once it is closed, or its engine is not what it was."""
        if self._closed:
            raise StoreClosed
        self.dialect.check_options()

    async def drain(self) -> None:
        """Wait until what was submitted in this event loop is carried out."""
        loop = asyncio.get_running_loop()
        writer = self._writer.made_here
        if writer is not None:
            await writer.drain()
        for task in (self.opening.task, self._hint):
            if task is not None and task.get_loop() is loop:
                await asyncio.wait([task])

    async def close(self) -> None:
        """Take no more, and wait until what was submitted is carried out, reads too.

        What goes on step by step, such as a rebuild, ends with `StoreClosed` at its next step.
        """
        key = (self._names, self.dialect.schema)
        vars(self.engine.sync_engine).get(_ATTRIBUTE, {}).pop(key, None)
        self._closed = True
        await self.drain()
        self.log.gate.close()
        self.appended.give()  # to whoever waits for events, and is to end
        await self.log.gate.settled()

    async def _commit(
        self, commands: Sequence[Command], limits: Limits, *, waits: bool = False
    ) -> list[Outcome | EventMetaError]:
        outcomes = await self.log.commit(commands, limits, waits=waits)
        self.appended.give()
        if self.gives_hints and self._hint is None:
            self._hint = asyncio.create_task(self._give_hint(), name="eventmeta-hint")
        return outcomes

    async def _give_hint(self) -> None:
        """To other processes, which look at the log by themselves after a while if it is lost."""
        try:
            with Deadline(self.log.limits.timeout):
                await self.dialect.hint(self.tables)
        except Exception as error:
            logger.debug("could not hint at new events: %s", error)
        finally:
            self._hint = None

    @asynccontextmanager
    async def hints(self) -> AsyncGenerator[None]:
        """Hear of what other processes append until the end of the block, if that is possible."""
        if not self.gives_hints:
            yield
            return
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.dialect.hints(self.tables, self.appended.give))
            except Exception as error:
                logger.warning("looks at the log without hints from other processes: %s", error)
            yield

    @property
    def order(self) -> Order:
        """The order of writes in this event loop."""
        return self._writer.here.order

    def _make_writer(self) -> Writer:
        in_line = connections_to_spare(self.engine, MAX_IN_LINE)
        return Writer(self._commit, self.log.expired, in_line=in_line, is_for_one=self._is_for_one)

    def _make_reader(self) -> Reader:
        log = self.log
        return Reader(
            lambda queries, limits: log.run(lambda: log.dialect.read(queries), limits),
            log.expired,
            self._is_for_one,
        )

    def _is_for_one(self) -> bool:
        """Return whether each transaction must be for one caller, in whose context it is run."""
        return self.dialect.runs_code_of_the_app


async def own_connection(
    connection: AsyncConnection | AsyncSession | None,
) -> AsyncConnection | None:
    """Return the connection on which a caller's transaction is."""
    return await connection.connection() if isinstance(connection, AsyncSession) else connection
