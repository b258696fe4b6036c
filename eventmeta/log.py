"""The log: append to it, read it, and know how far it can be read."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Executable, bindparam, false, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.batch import append_in_steps
from eventmeta.commands import Append, Command, StreamKey
from eventmeta.database_errors import DatabaseBusy, OutcomeUnknown
from eventmeta.dialects import Dialect, EventRelation
from eventmeta.dialects.statement import Program, Query, Row
from eventmeta.drafts import Outcome
from eventmeta.errors import EventMetaError
from eventmeta.events import RecordedEvent, read_event
from eventmeta.gate import Gate
from eventmeta.inline import append_and_apply, nothing
from eventmeta.plain import append_at_once, statement_for
from eventmeta.retrying import Retrying
from eventmeta.settle import settle
from eventmeta.tables import Tables
from eventmeta.write_statements import AppendStatements
from projections import EVENT_COLUMNS, AnySelect, AppliedProjection
from projections.types import BigInt

T = TypeVar("T")

RETRY_SECONDS = 15.0
BATCH_RETRY_SECONDS = 5.0
"""Less, for the others of a batch need not wait for the one that is in conflict."""

RACES = 5
"""How often the key of a row that a projection in plain Python adds may turn out to exist."""

PAGE = 1_000
MAX_POSITION = 2**63 - 1


class EventLog:
    """The append-only log of one database, and the tables that follow from it."""

    def __init__(self, dialect: Dialect, tables: Tables) -> None:
        self.dialect = dialect
        self.tables = tables
        self.statements = AppendStatements(tables, dialect)
        self.gate = Gate()
        self._retrying = Retrying(dialect, self.gate)
        self.applied: tuple[AppliedProjection, ...] = ()

    def maintain(self, tables: Tables, applied: tuple[AppliedProjection, ...]) -> None:
        """Keep what is inline in ``tables`` up to date from now on, and what is ``applied``."""
        self.tables, self.applied = tables, applied
        self.statements = AppendStatements(tables, self.dialect)

    # --- Appending ------------------------------------------------------------------------------

    async def commit(self, commands: Sequence[Command]) -> list[Outcome | EventMetaError]:
        """Carry out ``commands`` in their order, in one transaction.

        A command that is rejected, or that the database refuses, has no effect and leaves the
        others alone. When this returns, the rest is durable and visible to every process.
        Conflicts with other writers are retried for a bounded time; so are lost connections, for
        the event ids tell whether an attempt had succeeded.
        """
        seconds = RETRY_SECONDS if len(commands) == 1 else BATCH_RETRY_SECONDS
        try:
            return list(await self._retried(commands, seconds))
        except EventMetaError as error:
            if len(commands) == 1:
                return [error]
            return await self._commit_each(commands, error)

    async def _commit_each(
        self, commands: Sequence[Command], failure: EventMetaError
    ) -> list[Outcome | EventMetaError]:
        """Let each stand for itself: together they met ``failure``, so one of them is bad.

        If it is rather that the database is out of reach, they share the time that one of them
        would have; and those of a session that someone else holds wait for it only once.
        """
        transient = isinstance(failure, DatabaseBusy | OutcomeUnknown)
        shared = isinstance(failure, OutcomeUnknown) or self.dialect.locks_whole_database
        end = time.monotonic() + RETRY_SECONDS
        held: dict[StreamKey, EventMetaError] = {}
        outcomes: list[Outcome | EventMetaError] = []
        for command in commands:
            if command.stream in held:
                outcomes.append(held[command.stream])
            elif transient and shared and time.monotonic() > end:
                outcomes.append(failure)
            else:
                try:
                    outcomes += await self._retried([command], 0 if transient else RETRY_SECONDS)
                except EventMetaError as error:
                    outcomes.append(error)
                    if isinstance(error, DatabaseBusy):
                        held[command.stream] = error
        return outcomes

    async def commit_within(
        self, connection: AsyncConnection, command: Command
    ) -> Outcome | EventMetaError:
        """Carry out ``command`` in the caller's transaction, whose commit makes it visible."""
        try:
            if self.applied:
                return await settle(self._apply_within(connection, command))
            program = append_in_steps([command], self.statements)
            outcomes = await self.dialect.write_within(connection, program)
        except Exception as error:
            return self._retrying.translated(error)
        return outcomes[0]

    async def _apply_within(self, connection: AsyncConnection, command: Command) -> Outcome:
        """In a savepoint, for which a transaction must have begun."""
        await self.dialect.write_within(connection, nothing())
        async with self.dialect.savepoint(connection):
            outcomes = await self._append_and_apply([command], connection)
        return outcomes[0]

    async def _append_and_apply(
        self, commands: Sequence[Command], connection: AsyncConnection, *, alone: bool = True
    ) -> list[Outcome]:
        return await append_and_apply(
            commands, self.statements, self.applied, self.dialect, connection, alone=alone
        )

    async def _retried(self, commands: Sequence[Command], seconds: float) -> list[Outcome]:
        attempts = 0

        async def attempt() -> list[Outcome]:
            nonlocal attempts
            attempts += 1
            try:
                return await self._attempt(commands, racing=attempts < RACES)
            except Exception:
                # Whatever it was, the commit may have gone through before.
                for command in commands:
                    command.may_be_recorded = True
                raise

        return await self._retrying.retried(attempt, commit=True, seconds=seconds)

    async def _attempt(self, commands: Sequence[Command], *, racing: bool) -> list[Outcome]:
        sql = self.statements
        if self.applied:
            async with self.dialect.transaction() as connection:
                return await self._append_and_apply(commands, connection, alone=not racing)
        statement = statement_for(commands, sql.plain)
        if statement is None:
            return await self.dialect.write(append_in_steps(commands, sql))
        program = append_at_once(
            cast(Sequence[Append], commands), statement, self.tables.session_metadata
        )
        outcomes = await self.dialect.write(program, single=True)
        left = [n for n, outcome in enumerate(outcomes) if outcome is None]
        if left:
            rest = append_in_steps([commands[n] for n in left], sql)
            for n, outcome in zip(left, await self.dialect.write(rest), strict=True):
                outcomes[n] = outcome
        return outcomes

    async def repeatable(self, program: Callable[[], Program[T]]) -> T:
        """Run a program that may be run twice, as a transaction of its own."""

        async def attempt() -> T:
            return await self.dialect.write(program())

        return await settle(self._retrying.retried(attempt, commit=True, seconds=RETRY_SECONDS))

    async def fold(self, program: Callable[[], Program[T]]) -> T:
        """Run a program that folds the log and may be run twice, as a transaction of its own."""
        return await self.repeated(lambda: self.dialect.fold(program()))

    async def repeated(self, work: Callable[[], Awaitable[T]]) -> T:
        """A transaction that may be run twice. A cancelled caller waits for its end.

        A key that exists already is the fault of what is applied, so that is not tried again.
        """
        return await settle(self._retrying.retried(work, commit=False, seconds=RETRY_SECONDS))

    # --- Reading --------------------------------------------------------------------------------

    async def read(self, query: Executable, **values: Any) -> Sequence[Row]:
        """The rows of ``query``."""
        statement = self.dialect.compile(query)
        return await self.fetch(statement(**values))

    async def scan(self, query: Executable, **values: Any) -> Sequence[Row]:
        """The rows of ``query``, which goes through the whole log."""
        statement = self.dialect.compile(query)
        return await settle(self.run(lambda: self.dialect.scan(statement(**values))))

    async def fetch(self, query: Query) -> Sequence[Row]:
        """The rows of one query. A cancelled caller waits for the end, lest a connection leaks."""
        (rows,) = await settle(self.run(lambda: self.dialect.read([query])))
        return rows

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """``work``, which changes nothing, with its failures translated and retried."""
        return await self._retrying.retried(work, commit=False, seconds=RETRY_SECONDS)

    async def horizon(self) -> int:
        """The highest position below which nothing can still appear.

        A reader that takes only events up to it, and goes on from it, never skips one.
        """
        value = 0
        for executable in self.dialect.horizon(self.tables):
            statement = self.dialect.compile(executable)
            ((value,),) = await self.fetch(statement(previous=value))
        return value

    async def read_all(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Collection[str] | None = None,
        stream: StreamKey | None = None,
        conditions: Sequence[ColumnElement[bool]] = (),
        **values: Any,
    ) -> AsyncIterator[RecordedEvent]:
        """The events after position ``after``, in order, up to the horizon as it is at the start.

        Those of one stream are not held up by the horizon: its lock makes them visible in order.

        Args:
            after: The position of the last event already seen.
            until: The last position to read.
            types: Only events of these types.
            stream: Only events of this stream.
            conditions: Only events that meet these.
            **values: The parameters of the conditions.
        """
        end = await self.horizon() if stream is None else MAX_POSITION
        if until is not None:
            end = min(end, until)
        statement = self.dialect.compile(self._page(types, stream).where(*conditions))
        version = await self._version_at(after, stream) if stream is not None else 0
        while after < end:
            bounds = {"after": after, "until": end, "after_version": version}
            rows = await self.fetch(statement(**bounds, **values))
            for row in rows:
                yield read_event(row)
            if len(rows) < PAGE:
                return
            after, version = rows[-1][0], rows[-1][3]

    async def _version_at(self, position: int, stream: StreamKey) -> int:
        """Return the version of the event at ``position``; 0 if that is none of ``stream``."""
        log = self.tables.events
        query = select(log.c.version).where(log.c.position == bindparam("position"))
        query = query.where(*self.conditions(None, stream))
        rows = await self.read(query, position=position) if position else ()
        return rows[0][0] if rows else 0

    def _page(self, types: Collection[str] | None, stream: StreamKey | None) -> AnySelect:
        """``after``, ``until``, ``after_version`` → the next events.

        Those of a stream by its key, or each page would go through all of the stream.
        """
        log = self.tables.events
        position = log.c.position if stream is None else log.c.position + 0
        page = (
            select(*(log.c[name] for name in EVENT_COLUMNS))
            .where(position > bindparam("after"), position <= bindparam("until"))
            .where(*self.conditions(types, stream))
            .limit(PAGE)
        )
        if stream is None:
            return page.order_by(log.c.position)
        later = log.c.version > bindparam("after_version", type_=BigInt)
        return page.where(later).order_by(log.c.version)

    def conditions(
        self, types: Collection[str] | None, stream: StreamKey | None
    ) -> list[ColumnElement[bool]]:
        """That an event is of one of ``types``, and of ``stream``."""
        log = self.tables.events
        found: list[ColumnElement[bool]] = []
        if types is not None:
            found.append(or_(false(), *(log.c.type == name for name in sorted(types))))
        if stream is not None:
            found.append(log.c.stream_id == stream.stream_id)
            found.append(log.c.stream_type == stream.stream_type)
        return found

    def events(self, *conditions: Any) -> EventRelation:
        """The events that meet ``conditions``, as a relation."""
        log = self.tables.events
        rows = select(*(log.c[name] for name in EVENT_COLUMNS)).where(*conditions)
        return self.dialect.relation(rows.subquery("events"))
