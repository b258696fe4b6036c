"""Failures of the database: which pass if one tries again, and what the others mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import TimeoutError as PoolTimeout

from eventmeta.database_errors import (
    DatabaseBusy,
    DatabaseFailure,
    DatabaseRefused,
    OutcomeUnknown,
    TablesMissing,
)
from eventmeta.dialects import Dialect, Failure
from eventmeta.errors import EventMetaError
from eventmeta.gate import Gate

T = TypeVar("T")

ORPHANS = 5
"""How often a row that another refers to may turn out to have been deleted meanwhile."""


@dataclass(frozen=True)
class Retrying:
    """Work on one database, as long as the gate lets it in.

    Attributes:
        dialect: The database.
        gate: The gate.
        references: The foreign keys of the store's own: which table refers to which.
    """

    dialect: Dialect
    gate: Gate
    references: frozenset[tuple[str, str]] = frozenset()

    async def retried(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        commit: bool,
        seconds: float,
        unless_held: bool = False,
    ) -> T:
        """``work``, twice at least if it fails in a way that passes, and for ``seconds``.

        Args:
            work: What may be run again.
            commit: It appends commands, whose event ids tell whether it has succeeded before.
            seconds: For how long.
            unless_held: Not if a row is held by a transaction that stays open.
        """
        passage = self.gate.enter()
        try:
            return await self._retried(
                work, commit=commit, seconds=seconds, unless_held=unless_held
            )
        finally:
            self.gate.leave(passage)

    async def _retried(
        self, work: Callable[[], Awaitable[T]], *, commit: bool, seconds: float, unless_held: bool
    ) -> T:
        repeatable = {Failure.CONFLICT, Failure.DISCONNECTED}
        if commit:
            repeatable.add(Failure.DUPLICATE)
        if not unless_held:
            repeatable.add(Failure.HELD)
        orphans = 0

        def is_repeatable(error: BaseException) -> bool:
            nonlocal orphans
            if isinstance(error, EventMetaError):
                return commit and isinstance(error, DatabaseBusy)
            failure, _ = self.dialect.diagnose(error)
            if failure is Failure.ORPHANED:
                orphans += 1
                rule = self.dialect.rule_of(error)
                own = (rule.table, rule.refers_to) in self.references
                return commit and own and orphans <= ORPHANS
            return failure in repeatable

        try:
            try:
                return await work()
            except Exception as error:
                if not is_repeatable(error):
                    raise
            # Imported only when something fails, for it takes a while.
            from tenacity import (
                AsyncRetrying,
                retry_if_exception,
                stop_after_delay,
                wait_random_exponential,
            )

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
            translated = self.translated(error)
        raise translated from translated.__cause__

    def translated(self, error: Exception) -> EventMetaError:
        """Our own error for ``error``, without the values that SQLAlchemy's would show."""
        if isinstance(error, EventMetaError):
            return error
        failure, code = self.dialect.diagnose(error)
        cause = getattr(error, "orig", None) or error
        summary = f"{type(cause).__name__}: {cause}"
        translated: DatabaseFailure
        if failure is Failure.TABLE_MISSING:
            translated = TablesMissing(str(cause).splitlines()[0], code)
        elif failure in (Failure.REFUSED, Failure.ORPHANED):
            translated = self._refused(error, summary, code)
        elif failure is Failure.HELD:
            translated = DatabaseBusy(
                f"held by a transaction that stays open: {summary}", code, held=True
            )
        elif failure is Failure.CONFLICT:
            translated = DatabaseBusy(f"in conflict with other writers: {summary}", code)
        elif failure is Failure.CANCELLED:
            translated = DatabaseBusy(f"a statement was cancelled: {summary}", code)
        elif isinstance(error, PoolTimeout):
            translated = DatabaseBusy(f"no connection became free in the engine's pool: {error}")
        elif failure is Failure.DISCONNECTED:
            translated = OutcomeUnknown(f"the connection was lost: {summary}", code)
        else:
            translated = DatabaseFailure(summary, code)
        translated.__cause__ = cause
        return translated

    def _refused(self, error: Exception, summary: str, code: object) -> DatabaseRefused:
        """Say which rule it was, and nothing of the row, which the lines that follow may show."""
        constraint, table, _ = self.dialect.rule_of(error)
        of = f", constraint {constraint}" if constraint else ""
        of += f", table {table}" if table else ""
        message = f"refused by a rule of the database's own{of}: {summary.splitlines()[0]}"
        return DatabaseRefused(message, code, constraint, table)
