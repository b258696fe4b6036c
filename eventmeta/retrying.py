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
    DatabaseUnavailable,
    OutcomeUnknown,
    TablesMissing,
)
from eventmeta.dialects import Dialect, Failure
from eventmeta.errors import EventMetaError
from eventmeta.gate import Gate

T = TypeVar("T")


@dataclass(frozen=True)
class Retrying:
    """Work on one database, as long as the gate lets it in."""

    dialect: Dialect
    gate: Gate

    async def retried(self, work: Callable[[], Awaitable[T]], *, commit: bool, seconds: float) -> T:
        """``work``, twice at least if it fails in a way that passes, and for ``seconds``."""
        passage = self.gate.enter()
        try:
            return await self._retried(work, commit=commit, seconds=seconds)
        finally:
            self.gate.leave(passage)

    async def _retried(
        self, work: Callable[[], Awaitable[T]], *, commit: bool, seconds: float
    ) -> T:
        repeatable = {Failure.CONFLICT, Failure.DISCONNECTED}
        if commit:
            repeatable.add(Failure.DUPLICATE)

        def is_repeatable(error: BaseException) -> bool:
            if isinstance(error, EventMetaError):
                return commit and isinstance(error, DatabaseBusy)
            return self.dialect.diagnose(error)[0] in repeatable

        try:
            try:
                return await work()
            except Exception as error:
                # Another writer may just have deleted the row of the session.
                orphaned = commit and self.dialect.diagnose(error)[0] is Failure.ORPHANED
                if not (orphaned or is_repeatable(error)):
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
        elif failure is Failure.CONFLICT:
            translated = DatabaseBusy(f"in conflict with other writers: {summary}", code)
        elif failure is Failure.CANCELLED:
            translated = DatabaseBusy(f"a statement was cancelled: {summary}", code)
        elif isinstance(error, PoolTimeout):
            translated = DatabaseBusy(f"no connection became free in the engine's pool: {error}")
        elif failure in (Failure.REFUSED, Failure.ORPHANED, Failure.FORBIDDEN):
            translated = DatabaseRefused(f"the database refused it: {summary}", code)
        elif failure is Failure.RESOURCE:
            translated = DatabaseUnavailable(f"the database cannot do it now: {summary}", code)
        elif failure is Failure.DISCONNECTED:
            translated = OutcomeUnknown(f"the connection was lost: {summary}", code)
        else:
            translated = DatabaseFailure(summary, code)
        translated.__cause__ = cause
        return translated
