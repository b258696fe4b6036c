"""Appending: a batch of commands becomes events, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import cast

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.database_errors import DatabaseBusy, DatabaseUnavailable, OutcomeUnknown
from eventmeta.core.deadline import Deadline, Expired, Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.settle import run_to_completion
from eventmeta.database.database import Database
from eventmeta.dialects.failure import Failure
from eventmeta.dialects.statement import Statement
from eventmeta.log.batch import append_batch
from eventmeta.log.commands import Append, Command, with_companions
from eventmeta.log.fast_path import append_in_one_statement, statement_for
from eventmeta.log.inline import append_and_apply, nothing
from eventmeta.log.pending_event import Outcome
from eventmeta.log.statements import AppendStatements
from projections import AppliedProjection

RACES = 5
"""The attempt in which a duplicate key of a projection in plain Python no longer counts as a race.

In earlier attempts, another transaction may have added the row meanwhile.
"""


class Appender:
    """An appender to the log of one database, which also maintains the inline read models.

    Attributes:
        applied: The app's projections that Python applies in every append.
        statements: The statements of an append in a caller's transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._dialect = database.dialect
        self.maintain(())

    def maintain(self, applied: tuple[AppliedProjection, ...]) -> None:
        """Keep the current tables of the database and the ``applied`` projections up to date."""
        self.applied = applied
        tables = self._database.tables
        self.statements = AppendStatements(tables, self._dialect)
        self._own = {
            waits: AppendStatements(tables, self._dialect, waits=waits, waits_within=False)
            for waits in (False, True)
        }

    async def commit(
        self, commands: Sequence[Command], limits: Limits | None = None, *, waits: bool = False
    ) -> list[Outcome | EventMetaError]:
        """Carry out ``commands`` in their order, in one transaction, within ``limits``.

        A command that is rejected, or that the database refuses, has no effect and leaves the
        others alone. When this returns, the rest is durable and visible to every process.
        Conflicts with other writers are retried for a bounded time; so are lost connections, for
        the event ids tell whether an attempt had succeeded.

        Args:
            commands: The commands.
            limits: How long all of them may take together.
            waits: Whether to wait for a session or user that an open transaction holds. Otherwise
                its commands come back at once, each with a `DatabaseBusy` that says so, and all
                other commands are carried out.
        """
        limits = limits or self._database.limits
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

        If the server does not answer in time, the connection is closed and the transaction is
        undone.
        """
        try:
            with Deadline(limits.timeout) as deadline:
                lent = await connection.get_raw_connection()
                close = partial(self._dialect.abort_driver_connection, lent.driver_connection)
                deadline.lend(close)
                return await self._commit_within(connection, command)
        except Expired:
            with suppress(Exception):
                await connection.invalidate()
            failures = self._database.retrying.failures
            return failures.expired(limits.timeout, unknown=False, was_lent=True)
        except Exception as error:
            return self._database.retrying.failures.translated(error)

    async def _commit_within(self, connection: AsyncConnection, command: Command) -> Outcome:
        if self.applied:
            return await run_to_completion(self._apply_within(connection, command))
        program = append_batch([command], self.statements)
        outcomes = await self._dialect.write_within(connection, program)
        return outcomes[0]

    async def _apply_within(self, connection: AsyncConnection, command: Command) -> Outcome:
        """Append and apply in a savepoint, which needs a transaction that has begun."""
        await self._dialect.write_within(connection, nothing())
        async with self._dialect.savepoint(connection):
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
            commands, sql or self.statements, self.applied, self._dialect, connection, alone=alone
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
                # Whatever failed, the commit may have succeeded before.
                for command in with_companions(commands):
                    command.may_be_retry = True
                raise

        return await self._database.retrying.retried(
            attempt, commit=True, limits=limits, unless_held=True
        )

    async def _attempt(
        self, commands: Sequence[Command], *, racing: bool, waits: bool
    ) -> list[Outcome]:
        sql = self._own[waits]
        if self.applied:
            async with self._dialect.transaction() as connection:
                return await self._append_and_apply(commands, connection, alone=not racing, sql=sql)
        statement = None if waits else statement_for(commands, sql.plain)
        outcomes: list[Outcome] | None = None
        if statement is not None:
            outcomes = await self._attempt_at_once(cast(Sequence[Append], commands), statement)
        if outcomes is None:
            return await self._dialect.write(append_batch(commands, sql))
        left = [n for n, outcome in enumerate(outcomes) if outcome is None]
        if left:
            rest = append_batch([commands[n] for n in left], sql)
            for n, outcome in zip(left, await self._dialect.write(rest), strict=True):
                outcomes[n] = outcome
        return outcomes

    async def _attempt_at_once(
        self, commands: Sequence[Append], statement: Statement
    ) -> list[Outcome] | None:
        """Append in one statement, and return None if another transaction holds a head.

        One statement cannot pass over what is held; `append_batch` can.
        """
        program = append_in_one_statement(
            commands, statement, self._database.tables.session_metadata
        )
        try:
            return await self._dialect.write(program, single=True)
        except Exception as error:
            if self._dialect.diagnose(error)[0] is not Failure.HELD:
                raise
            return None
