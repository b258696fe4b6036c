"""The log: append to it, read it, and know how far it can be read."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import bindparam, false, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from eventmeta.batch import Outcome, append_at_once, append_in_steps, is_plain
from eventmeta.commands import AddItems, Append, Command, StreamKey
from eventmeta.dialects import Dialect, Failure
from eventmeta.dialects.statement import Query, Row
from eventmeta.errors import (
    DatabaseBusy,
    DatabaseFailure,
    EventMetaError,
    OutcomeUnknown,
    TablesMissing,
)
from eventmeta.events import RecordedEvent, read_event
from eventmeta.settle import settle
from eventmeta.tables import Tables
from eventmeta.write_statements import WriteStatements
from projections import EVENT_COLUMNS, AnySelect, Events

T = TypeVar("T")

RETRY_SECONDS = 15.0
BATCH_RETRY_SECONDS = 5.0
"""Less, for the others of a batch need not wait for the one that is in conflict."""

PAGE = 1_000
MAX_POSITION = 2**63 - 1


class EventLog:
    """The append-only log of one database, and the tables that follow from it."""

    def __init__(self, dialect: Dialect, tables: Tables) -> None:
        self.dialect = dialect
        self.tables = tables
        self.statements = WriteStatements(tables, dialect)

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
            program = append_in_steps([command], self.statements)
            outcomes = await self.dialect.write_within(connection, program)
        except Exception as error:
            return self._translated(error)
        return outcomes[0]

    async def _retried(self, commands: Sequence[Command], seconds: float) -> list[Outcome]:
        async def attempt() -> list[Outcome]:
            try:
                return await self._attempt(commands)
            except Exception:
                # Whatever it was, the commit may have gone through before.
                for command in commands:
                    command.may_be_recorded = True
                raise

        return await self._with_retries(attempt, commit=True, seconds=seconds)

    async def _attempt(self, commands: Sequence[Command]) -> list[Outcome]:
        sql = self.statements
        if sql.append_at_once and all(map(is_plain, commands)):
            plain = cast(Sequence[Append], commands)
            with_items = any(isinstance(command, AddItems) for command in plain)
            program = append_at_once(plain, sql.append_at_once[with_items])
            return await self.dialect.write(program, single=True)
        return await self.dialect.write(append_in_steps(commands, sql))

    # --- Reading --------------------------------------------------------------------------------

    async def read(self, query: AnySelect, **values: Any) -> Sequence[Row]:
        """The rows of ``query``."""
        statement = self.dialect.compile(query)
        return await self._fetch(statement(**values))

    async def _fetch(self, query: Query) -> Sequence[Row]:
        """The rows of one query. A cancelled caller waits for the end, lest a connection leaks."""
        (rows,) = await settle(self.run(lambda: self.dialect.read([query])))
        return rows

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """``work``, which changes nothing, with its failures translated and retried."""
        return await self._with_retries(work, commit=False, seconds=RETRY_SECONDS)

    async def horizon(self) -> int:
        """The highest position below which nothing can still appear.

        A reader that takes only events up to it, and goes on from it, never skips one.
        """
        value = 0
        for executable in self.dialect.horizon(self.tables):
            statement = self.dialect.compile(executable)
            ((value,),) = await self._fetch(statement(previous=value))
        return value

    async def read_all(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Collection[str] | None = None,
        stream: StreamKey | None = None,
    ) -> AsyncIterator[RecordedEvent]:
        """The events after position ``after``, in order, up to the horizon as it is at the start.

        Those of one stream are not held up by the horizon: its lock makes them visible in order.

        Args:
            after: The position of the last event already seen.
            until: The last position to read.
            types: Only events of these types.
            stream: Only events of this stream.
        """
        end = await self.horizon() if stream is None else MAX_POSITION
        if until is not None:
            end = min(end, until)
        statement = self.dialect.compile(self._page(types, stream))
        while after < end:
            rows = await self._fetch(statement(after=after, until=end))
            for row in rows:
                yield read_event(row)
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def _page(self, types: Collection[str] | None, stream: StreamKey | None) -> AnySelect:
        log = self.tables.events
        query = (
            select(*(log.c[name] for name in EVENT_COLUMNS))
            .where(log.c.position > bindparam("after"), log.c.position <= bindparam("until"))
            .order_by(log.c.position)
            .limit(PAGE)
        )
        if types is not None:
            query = query.where(or_(false(), *(log.c.type == name for name in sorted(types))))
        if stream is not None:
            query = query.where(
                log.c.stream_id == stream.stream_id, log.c.stream_type == stream.stream_type
            )
        return query

    def events(self, *conditions: Any) -> Events:
        """The events that meet ``conditions``, as a relation."""
        log = self.tables.events
        rows = select(*(log.c[name] for name in EVENT_COLUMNS)).where(*conditions)
        return self.dialect.relation(rows.subquery("events"))

    # --- Failures -------------------------------------------------------------------------------

    async def _with_retries(
        self, work: Callable[[], Awaitable[T]], *, commit: bool, seconds: float
    ) -> T:
        """``work``, twice at least if it fails in a way that passes, and for ``seconds``."""
        repeatable = {Failure.CONFLICT, Failure.DISCONNECTED}
        if commit:
            repeatable.add(Failure.DUPLICATE)

        def is_repeatable(error: BaseException) -> bool:
            return self.dialect.diagnose(error)[0] in repeatable

        try:
            try:
                return await work()
            except Exception as error:
                if not is_repeatable(error):
                    raise
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(is_repeatable),
                stop=stop_after_delay(seconds),
                wait=wait_random_exponential(multiplier=0.01, max=0.5),
                reraise=True,
            ):
                with attempt:
                    return await work()
            raise AssertionError("the last attempt raises")
        except Exception as error:
            translated = self._translated(error)
        raise translated from translated.__cause__

    def _translated(self, error: Exception) -> EventMetaError:
        """Our own error for ``error``, without the values that SQLAlchemy's would show."""
        if isinstance(error, EventMetaError):
            return error
        failure, code = self.dialect.diagnose(error)
        cause = getattr(error, "orig", None) or error
        summary = f"{type(cause).__name__}: {cause}"
        translated: DatabaseFailure
        if failure is Failure.TABLE_MISSING:
            translated = TablesMissing(str(cause).splitlines()[0], code)
        elif failure is Failure.CONFLICT:
            translated = DatabaseBusy(f"in conflict with other writers: {summary}", code)
        elif failure is Failure.DISCONNECTED:
            translated = OutcomeUnknown(f"the connection was lost: {summary}", code)
        else:
            translated = DatabaseFailure(summary, code)
        translated.__cause__ = cause
        return translated
