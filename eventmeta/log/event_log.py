"""The log of one engine, which its sessions and stores share: commands in, events out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from eventmeta.core.deadline import Deadline, Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import RecordedEvent
from eventmeta.core.per_loop import PerLoop
from eventmeta.core.signals import Notifier
from eventmeta.core.write_order import Order, Turn
from eventmeta.database.database import Database
from eventmeta.database.event_reading import LogReading
from eventmeta.dialects.connections import connections_to_spare
from eventmeta.dialects.factory import check_engine, dialect_of
from eventmeta.log.appender import Appender
from eventmeta.log.commands import Command
from eventmeta.log.lanes import MAX_IN_LINE
from eventmeta.log.pending_event import Outcome
from eventmeta.log.writer import Writer
from eventmeta.read_models.registry import ProjectionRegistry
from eventmeta.tables.names import TableNames
from eventmeta.tables.tables import Tables, define_tables
from projections import AnyProjection

logger = logging.getLogger("eventmeta")

_ATTRIBUTE = "eventmeta_logs"
_Key = tuple[TableNames, str | None]


class EventLog(LogReading):
    """The append-only log of one engine and one set of tables, with its projections.

    An engine may serve several event loops, one after another; each has its own writer.

    Attributes:
        database: The engine and the tables.
        registry: The projections.
        appended: Notifies the waiters for events.
        applied: Notifies the waiters for a projection.
        appender: Appends to the log.
        gives_hints: Whether other processes get hints at new events.
    """

    def __init__(self, engine: AsyncEngine, names: TableNames) -> None:
        super().__init__(Database(engine, names, self._keep_structured))
        self.appender = Appender(self.database)
        self.registry = ProjectionRegistry(self.database.tables, self.database.dialect)
        self.appended = Notifier()
        self.applied = Notifier()
        self.gives_hints = False
        self._hint: asyncio.Task[None] | None = None
        self._writer = PerLoop(self._make_writer)

    @classmethod
    def of(cls, engine: AsyncEngine, names: TableNames | None = None) -> EventLog:
        """Return the one log of ``engine`` with these tables, and make it if there is none.

        The engine keeps the log, which lives as long as the engine. If the engine's translation of
        schemas changes, later calls get another log.
        """
        check_engine(engine)
        names = names or TableNames()
        key = (names, dialect_of(engine).schema)
        found: dict[_Key, EventLog] = vars(engine.sync_engine).setdefault(_ATTRIBUTE, {})
        if key not in found:
            found[key] = cls(engine, names)
        return found[key]

    def _keep_structured(self) -> None:
        """Keep structured tables, as the database does and the options do not say whether to."""
        database = self.database
        names = replace(database.names, structured_metadata=True)
        tables = define_tables(names, database.dialect.event_keys)
        self.registry.follow(tables)
        self._maintain(tables)

    def _maintain(self, tables: Tables) -> None:
        """Keep ``tables`` and the inline projections up to date with every append."""
        self.database.replace_tables(replace(tables, inline=self.registry.inline_folded))
        self.appender.maintain(self.registry.inline_applied)

    def register(self, projection: AnyProjection, *, inline: bool) -> None:
        """Register a projection to be kept up to date: see `MetadataStore.register`."""
        if self.registry.add(projection, inline=inline):
            self._maintain(self.database.tables)
            self.database.opening.tables_changed()

    async def create_tables(self, *, turn_on: bool = False) -> None:
        """Add the missing tables, columns and indexes: see `Opening.create_tables`."""
        await self.database.opening.create_tables(turn_on=turn_on)
        if turn_on:  # all open logs of this engine have to notice it
            found: dict[_Key, EventLog] = vars(self.database.engine.sync_engine).get(_ATTRIBUTE, {})
            for other in found.values():
                other.database.opening.check_again()

    async def submit(
        self,
        command: Command,
        connection: AsyncConnection | AsyncSession | None = None,
        limits: Limits | None = None,
        turn: Turn | None = None,
    ) -> RecordedEvent | None:
        """Carry out ``command``, and return its event, or None if there was nothing to do.

        Args:
            command: The command.
            connection: The caller's connection, in whose transaction to carry out the command. The
                event becomes durable and visible with the caller's commit, and vanishes with a
                rollback.
            limits: How long the caller waits.
            turn: The turn in which the command was prepared. It ends as the command joins the
                queue, and its limits apply.

        Raises:
            EventMetaError: The command was rejected or failed; nothing was changed.
        """
        self.database.check_open()
        limits = limits or self.database.limits
        connection = await own_connection(connection)
        if connection is not None:
            self.database.dialect.check_connection(connection)
            await self.database.opening.connect_within(connection, limits)
            outcome = await self.appender.commit_within(connection, command, limits)
        else:
            if turn is not None:
                limits = turn.end()
            outcome = await self._writer.here.submit(command, limits)
        if isinstance(outcome, EventMetaError):
            raise outcome
        return outcome

    async def drain(self) -> None:
        """Wait until all commands that were submitted in this event loop are carried out."""
        loop = asyncio.get_running_loop()
        writer = self._writer.made_here
        if writer is not None:
            await writer.drain()
        for task in (self.database.opening.task, self._hint):
            if task is not None and task.get_loop() is loop:
                await asyncio.wait([task])

    async def close(self) -> None:
        """Refuse further calls, and wait for the end of all submitted commands and reads.

        An operation of many steps, such as a rebuild, ends with `StoreClosed` at its next step.
        """
        database = self.database
        key = (database.names, database.dialect.schema)
        vars(database.engine.sync_engine).get(_ATTRIBUTE, {}).pop(key, None)
        database.close()
        await self.drain()
        database.gate.close()
        self.appended.give()  # wakes the waiters for events, which then end
        await database.gate.settled()

    async def _commit(
        self, commands: Sequence[Command], limits: Limits, *, waits: bool = False
    ) -> list[Outcome | EventMetaError]:
        outcomes = await self.appender.commit(commands, limits, waits=waits)
        self.appended.give()
        if self.gives_hints and self._hint is None:
            self._hint = asyncio.create_task(self._give_hint(), name="eventmeta-hint")
        return outcomes

    async def _give_hint(self) -> None:
        """Hint to other processes that there are new events.

        If the hint is lost, the other processes find the events at their next poll.
        """
        try:
            with Deadline(self.database.limits.timeout):
                await self.database.dialect.hint(self.database.tables)
        except Exception as error:
            logger.debug("could not hint at new events: %s", error)
        finally:
            self._hint = None

    @asynccontextmanager
    async def hints(self) -> AsyncGenerator[None]:
        """Receive hints at events of other processes during the block, if that is possible."""
        if not self.gives_hints:
            yield
            return
        database = self.database
        async with AsyncExitStack() as stack:
            try:
                hints = database.dialect.hints(database.tables, self.appended.give)
                await stack.enter_async_context(hints)
            except Exception as error:
                logger.warning("polls the log without hints from other processes: %s", error)
            yield

    @property
    def order(self) -> Order:
        """Return the order of writes in this event loop."""
        return self._writer.here.order

    def _make_writer(self) -> Writer:
        database = self.database
        return Writer(
            self._commit,
            database.expired,
            in_line=connections_to_spare(database.engine, MAX_IN_LINE),
            is_for_one=database.is_for_one,
        )


async def own_connection(
    connection: AsyncConnection | AsyncSession | None,
) -> AsyncConnection | None:
    """Return the connection of a caller's transaction; None if there is none."""
    return await connection.connection() if isinstance(connection, AsyncSession) else connection
