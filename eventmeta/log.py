"""The log: append to it, read it, and know how far it can be read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.batch import append_in_steps
from eventmeta.commands import Append, Command, StreamKey
from eventmeta.database_errors import DatabaseBusy, DatabaseUnavailable, OutcomeUnknown
from eventmeta.deadline import Deadline, Expired, Limits
from eventmeta.dialects import Dialect
from eventmeta.dialects.statement import Program, Query, Row
from eventmeta.drafts import Outcome
from eventmeta.errors import EventMetaError
from eventmeta.gate import Gate
from eventmeta.inline import append_and_apply, nothing
from eventmeta.log_reading import LogReading
from eventmeta.plain import append_at_once, statement_for
from eventmeta.retrying import Retrying
from eventmeta.settle import settle
from eventmeta.tables import Tables
from eventmeta.write_statements import AppendStatements
from projections import AppliedProjection

T = TypeVar("T")

RETRY_SECONDS = 15.0
BATCH_RETRY_SECONDS = 5.0
"""Less, for the others of a batch need not wait for the one that is in conflict."""

RACES = 5
"""How often the key of a row that a projection in plain Python adds may turn out to exist."""


class EventLog(LogReading):
    """The append-only log of one database, and the tables that follow from it."""

    def __init__(self, dialect: Dialect, tables: Tables) -> None:
        self.dialect = dialect
        self.tables = tables
        self.statements = AppendStatements(tables, dialect)
        self.gate = Gate()
        self.limits = Limits()
        self._retrying = Retrying(dialect, self.gate)
        self.applied: tuple[AppliedProjection, ...] = ()

    def maintain(self, tables: Tables, applied: tuple[AppliedProjection, ...]) -> None:
        """Keep what is inline in ``tables`` up to date from now on, and what is ``applied``."""
        self.tables, self.applied = tables, applied
        self.statements = AppendStatements(tables, self.dialect)

    def expired(self, limits: Limits, *, unknown: bool = False) -> EventMetaError:
        """Return the error of a call that has waited for as long as ``limits`` let it.

        Args:
            limits: Those of the caller.
            unknown: A change may have been recorded.
        """
        return self._retrying.expired(limits.timeout, unknown=unknown, was_lent=unknown)

    # --- Appending ------------------------------------------------------------------------------

    async def commit(
        self, commands: Sequence[Command], limits: Limits | None = None
    ) -> list[Outcome | EventMetaError]:
        """Carry out ``commands`` in their order, in one transaction, within ``limits``.

        A command that is rejected, or that the database refuses, has no effect and leaves the
        others alone. When this returns, the rest is durable and visible to every process.
        Conflicts with other writers are retried for a bounded time; so are lost connections, for
        the event ids tell whether an attempt had succeeded.
        """
        seconds = RETRY_SECONDS if len(commands) == 1 else BATCH_RETRY_SECONDS
        limits = limits or self.limits
        end = time.monotonic() + limits.timeout
        try:
            return list(await self._retried(commands, seconds, limits))
        except EventMetaError as error:
            if len(commands) == 1 or isinstance(error, DatabaseUnavailable):
                return [error] * len(commands)
            return await self._commit_each(commands, error, limits, end)

    async def _commit_each(
        self, commands: Sequence[Command], failure: EventMetaError, limits: Limits, deadline: float
    ) -> list[Outcome | EventMetaError]:
        """Let each stand for itself: together they met ``failure``, so one of them is bad.

        If it is rather that the database is out of reach, they share the time that one of them
        would have; and those of a session that someone else holds wait for it only once.
        """
        unreachable = isinstance(failure, DatabaseUnavailable | OutcomeUnknown)
        transient = unreachable or isinstance(failure, DatabaseBusy)
        shared = unreachable or self.dialect.locks_whole_database
        end = min(time.monotonic() + RETRY_SECONDS, deadline)
        held: dict[StreamKey, EventMetaError] = {}
        outcomes: list[Outcome | EventMetaError] = []
        for command in commands:
            if command.stream in held:
                outcomes.append(held[command.stream])
            elif transient and shared and time.monotonic() > end:
                outcomes.append(failure)
            else:
                seconds = 0 if transient else RETRY_SECONDS
                left = Limits(
                    max(deadline - time.monotonic(), 0), 0 if transient else limits.retry_for
                )
                try:
                    outcomes += await self._retried([command], seconds, left)
                except EventMetaError as error:
                    outcomes.append(error)
                    if isinstance(error, DatabaseUnavailable):
                        end = 0.0  # there is nobody to ask for the others
                    if isinstance(error, DatabaseBusy):
                        held[command.stream] = error
        return outcomes

    async def commit_within(
        self, connection: AsyncConnection, command: Command, limits: Limits
    ) -> Outcome | EventMetaError:
        """Carry out ``command`` in the caller's transaction, whose commit makes it visible.

        If the server does not answer in time, the connection is closed, and the transaction undone.
        """
        try:
            with Deadline(limits.timeout) as deadline:
                lent = await connection.get_raw_connection()
                close = partial(self.dialect.abort_driver_connection, lent.driver_connection)
                deadline.lend(close)
                return await self._commit_within(connection, command)
        except Expired:
            with suppress(Exception):
                await connection.invalidate()
            return self._retrying.expired(limits.timeout, unknown=False, was_lent=True)
        except Exception as error:
            return self._retrying.translated(error)

    async def _commit_within(self, connection: AsyncConnection, command: Command) -> Outcome:
        if self.applied:
            return await settle(self._apply_within(connection, command))
        program = append_in_steps([command], self.statements)
        outcomes = await self.dialect.write_within(connection, program)
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

    async def _retried(
        self, commands: Sequence[Command], seconds: float, limits: Limits
    ) -> list[Outcome]:
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

        return await self._retrying.retried(attempt, commit=True, seconds=seconds, limits=limits)

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

        return await settle(
            self._retrying.retried(
                attempt, commit=True, seconds=RETRY_SECONDS, limits=self.limits.long
            )
        )

    async def fold(self, program: Callable[[], Program[T]], *, long: bool = False) -> T:
        """Run a program that folds the log and may be run twice, as a transaction of its own.

        Args:
            program: Makes the program.
            long: It may go through the whole log: see `Limits.long`.
        """
        return await self.repeated(lambda: self.dialect.fold(program()), long=long)

    async def repeated(self, work: Callable[[], Awaitable[T]], *, long: bool = True) -> T:
        """Run a transaction that may be run twice. A cancelled caller waits for its end.

        A key that exists already is the fault of what is applied, so that is not tried again.
        """
        return await settle(
            self._retrying.retried(
                work,
                commit=False,
                seconds=RETRY_SECONDS,
                limits=self.limits.long if long else self.limits,
            )
        )

    # --- Reading --------------------------------------------------------------------------------

    async def read(
        self, query: Executable, limits: Limits | None = None, /, **values: Any
    ) -> Sequence[Row]:
        """The rows of ``query``, read within ``limits``."""
        statement = self.dialect.compile(query)
        return await self.fetch(statement(**values), limits)

    async def scan(self, query: Executable, **values: Any) -> Sequence[Row]:
        """The rows of ``query``, which goes through the whole log."""
        statement = self.dialect.compile(query)
        return await settle(
            self.run(lambda: self.dialect.scan(statement(**values)), self.limits.long)
        )

    async def fetch(self, query: Query, limits: Limits | None = None) -> Sequence[Row]:
        """The rows of one query. A cancelled caller waits for the end, lest a connection leaks."""
        (rows,) = await settle(self.run(lambda: self.dialect.read([query]), limits))
        return rows

    async def run(self, work: Callable[[], Awaitable[T]], limits: Limits | None = None) -> T:
        """``work``, which changes nothing, with its failures translated and retried."""
        return await self._retrying.retried(
            work,
            commit=False,
            seconds=RETRY_SECONDS,
            limits=limits or self.limits,
            changes=False,
        )
