"""The log: append to it, read it, and know how far it can be read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.batch import append_in_steps
from eventmeta.commands import Append, Command, with_companions
from eventmeta.database_errors import DatabaseBusy, DatabaseUnavailable, OutcomeUnknown
from eventmeta.deadline import Deadline, Expired, Limits
from eventmeta.dialects import Dialect, Failure
from eventmeta.dialects.statement import Program, Query, Row, Statement, only
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

RACES = 5
"""How often the key of a row that a projection in plain Python adds may turn out to exist."""


class EventLog(LogReading):
    """The append-only log of one database, and the tables that follow from it."""

    def __init__(self, dialect: Dialect, tables: Tables) -> None:
        self.dialect = dialect
        self.tables = tables
        self._compile(tables)
        self.gate = Gate()
        self.limits = Limits()
        self._retrying = Retrying(dialect, self.gate, tables.references)
        self.applied: tuple[AppliedProjection, ...] = ()

    def maintain(self, tables: Tables, applied: tuple[AppliedProjection, ...]) -> None:
        """Keep what is inline in ``tables`` up to date from now on, and what is ``applied``."""
        self.tables, self.applied = tables, applied
        self._retrying = replace(self._retrying, references=tables.references)
        self._compile(tables)

    def _compile(self, tables: Tables) -> None:
        self.statements = AppendStatements(tables, self.dialect)
        self._own = {
            waits: AppendStatements(tables, self.dialect, waits=waits, waits_within=False)
            for waits in (False, True)
        }

    def expired(self, limits: Limits, *, unknown: bool = False) -> EventMetaError:
        """Return the error of a call that has waited for as long as ``limits`` let it.

        Args:
            limits: Those of the caller.
            unknown: A change may have been recorded.
        """
        return self._retrying.failures.expired(limits.timeout, unknown=unknown, was_lent=unknown)

    # --- Appending ------------------------------------------------------------------------------

    async def commit(
        self, commands: Sequence[Command], limits: Limits | None = None, *, waits: bool = False
    ) -> list[Outcome | EventMetaError]:
        """Carry out ``commands`` in their order, in one transaction, within ``limits``.

        A command that is rejected, or that the database refuses, has no effect and leaves the
        others alone. When this returns, the rest is durable and visible to every process.
        Conflicts with other writers are retried for a bounded time; so are lost connections, for
        the event ids tell whether an attempt had succeeded.

        Args:
            commands: What to do.
            limits: How long all of it may take.
            waits: Whether to wait for a session or user that an open transaction holds. Otherwise
                its commands come back at once, each with a `DatabaseBusy` that says so, and those
                that need nothing of it are carried out.
        """
        limits = limits or self.limits
        end = time.monotonic() + limits.timeout
        try:
            return list(await self._retried(commands, limits, waits=waits))
        except (DatabaseBusy, DatabaseUnavailable, OutcomeUnknown) as error:
            return [error for _ in commands]
        except EventMetaError as error:
            if len(commands) == 1:
                return [error]
        outcomes: list[Outcome | EventMetaError] = []
        half = len(commands) // 2
        for part in (commands[:half], commands[half:]):
            left = limits._replace(timeout=max(end - time.monotonic(), 0))
            outcomes += await self.commit(part, left, waits=waits)
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
            return self._retrying.failures.expired(limits.timeout, unknown=False, was_lent=True)
        except Exception as error:
            return self._retrying.failures.translated(error)

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
        self,
        commands: Sequence[Command],
        connection: AsyncConnection,
        *,
        alone: bool = True,
        sql: AppendStatements | None = None,
    ) -> list[Outcome]:
        return await append_and_apply(
            commands, sql or self.statements, self.applied, self.dialect, connection, alone=alone
        )

    async def _retried(
        self, commands: Sequence[Command], limits: Limits, *, waits: bool
    ) -> list[Outcome]:
        attempts = 0

        async def attempt() -> list[Outcome]:
            nonlocal attempts
            attempts += 1
            try:
                return await self._attempt(commands, racing=attempts < RACES, waits=waits)
            except Exception:
                # Whatever it was, the commit may have gone through before.
                for command in with_companions(commands):
                    command.may_be_recorded = True
                raise

        return await self._retrying.retried(
            attempt, commit=True, seconds=RETRY_SECONDS, limits=limits, unless_held=True
        )

    async def _attempt(
        self, commands: Sequence[Command], *, racing: bool, waits: bool
    ) -> list[Outcome]:
        sql = self._own[waits]
        if self.applied:
            async with self.dialect.transaction() as connection:
                return await self._append_and_apply(commands, connection, alone=not racing, sql=sql)
        statement = None if waits else statement_for(commands, sql.plain)
        outcomes: list[Outcome] | None = None
        if statement is not None:
            outcomes = await self._attempt_at_once(cast(Sequence[Append], commands), statement)
        if outcomes is None:
            return await self.dialect.write(append_in_steps(commands, sql))
        left = [n for n, outcome in enumerate(outcomes) if outcome is None]
        if left:
            rest = append_in_steps([commands[n] for n in left], sql)
            for n, outcome in zip(left, await self.dialect.write(rest), strict=True):
                outcomes[n] = outcome
        return outcomes

    async def _attempt_at_once(
        self, commands: Sequence[Append], statement: Statement
    ) -> list[Outcome] | None:
        """None if something is held: to pass that over takes steps."""
        program = append_at_once(commands, statement, self.tables.session_metadata)
        try:
            return await self.dialect.write(program, single=True)
        except Exception as error:
            if self.dialect.diagnose(error)[0] is not Failure.HELD:
                raise
            return None

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

    async def fetch(
        self,
        query: Query,
        limits: Limits | None = None,
        connection: AsyncConnection | None = None,
    ) -> Sequence[Row]:
        """The rows of one query. A cancelled caller waits for the end, lest a connection leaks.

        Args:
            query: What to read.
            limits: How long to wait for it.
            connection: Read in this transaction of the caller's.
        """
        if connection is not None:
            try:
                return await self.dialect.write_within(connection, only(query))
            except Exception as error:
                raise self._retrying.failures.translated(error) from None
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
