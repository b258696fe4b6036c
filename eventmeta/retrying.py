"""Failures of the database: which pass if one tries again, and what the others mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from eventmeta.database_errors import (
    DatabaseBusy,
    DatabaseFailure,
    DatabaseUnavailable,
    OutcomeUnknown,
    TablesMissing,
)
from eventmeta.deadline import Deadline, Expired, Limits
from eventmeta.dialects import Dialect, Failure
from eventmeta.errors import EventMetaError
from eventmeta.gate import Gate

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

_UNANSWERED = frozenset({Failure.DISCONNECTED, Failure.TIMED_OUT})
_UNREACHABLE = _UNANSWERED | {Failure.NO_CONNECTION_LEFT}
_PASSING = _UNREACHABLE | {Failure.CONFLICT, Failure.CANCELLED, Failure.NOT_LET_IN}
_BARELY = 0.05
"""Seconds that are too few for another attempt."""


@dataclass(frozen=True)
class Retrying:
    """Work on one database, as long as the gate lets it in."""

    dialect: Dialect
    gate: Gate

    async def retried(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        commit: bool,
        seconds: float,
        limits: Limits,
        changes: bool = True,
    ) -> T:
        """Run ``work``, and again while it fails in a way that passes.

        Args:
            work: What to do. It may be done twice.
            commit: It is an append, whose event ids tell whether it has been done before.
            seconds: How long a conflict with others is retried.
            limits: How long all of it may take, and how long a connection is tried to be had.
            changes: It may change something, so that its outcome may be unknown.

        Raises:
            EventMetaError: It failed for good, or the time was up.
        """
        passage = self.gate.enter()
        deadline = Deadline(limits.timeout)
        attempts: _Attempts[T] | None = None
        try:
            with deadline:
                try:
                    return await work()
                except Exception as error:
                    attempts = _Attempts(self, work, commit, changes, seconds, limits, deadline)
                    attempts.take(error)
                return await attempts.run()
        except Expired:
            attempts = attempts or _Attempts(self, work, commit, changes, seconds, limits, deadline)
            failure = attempts.expired()
        finally:
            self.gate.leave(passage)
        raise failure from failure.__cause__

    def translated(
        self, error: Exception, *, unknown: bool = False, was_lent: bool = True
    ) -> EventMetaError:
        """Return our own error for ``error``, without the values that SQLAlchemy's would show.

        Args:
            error: That of the driver or of SQLAlchemy.
            unknown: A change may have been recorded, though no answer came.
            was_lent: There was a connection; else it came of making one.
        """
        if isinstance(error, EventMetaError):
            return error
        failure, code = self.dialect.diagnose(error)
        if failure is Failure.TIMED_OUT and not was_lent:
            failure = Failure.DISCONNECTED
        cause = getattr(error, "orig", None) or error
        summary = f"{type(cause).__name__}: {cause}"
        translated: DatabaseFailure
        if failure is Failure.TABLE_MISSING:
            translated = TablesMissing(str(cause).splitlines()[0], code)
        elif unknown and failure in _PASSING:
            translated = OutcomeUnknown(f"no answer came from {self._where}: {summary}", code)
        elif failure is Failure.CONFLICT:
            translated = DatabaseBusy(f"in conflict with other writers: {summary}", code)
        elif failure is Failure.CANCELLED:
            translated = DatabaseBusy(f"a statement was cancelled: {summary}", code)
        elif failure is Failure.NO_CONNECTION_LEFT:
            whose = "in the engine's pool" if code is None else f"at {self._where}"
            translated = DatabaseBusy(f"no connection became free {whose}: {summary}", code)
        elif failure is Failure.TIMED_OUT:
            translated = DatabaseBusy(f"over the limit of time of the driver: {summary}", code)
        elif failure in (Failure.DISCONNECTED, Failure.NOT_LET_IN):
            translated = DatabaseUnavailable(f"no connection to {self._where}: {summary}", code)
        else:
            translated = DatabaseFailure(summary, code)
        translated.__cause__ = cause
        return translated

    def expired(self, seconds: float, *, unknown: bool, was_lent: bool) -> EventMetaError:
        """Return the error for what had not ended after ``seconds``.

        Args:
            seconds: The limit.
            unknown: As for `translated`.
            was_lent: As for `translated`.
        """
        where, within = self._where, f"within {seconds:.3g} s"
        if unknown:
            return OutcomeUnknown(
                f"no answer came from {where} {within}, and the connection was closed: the change "
                "may or may not be recorded; repeat the call with the same event_id"
            )
        if not was_lent and self.dialect.has_lent_all:
            return DatabaseBusy(f"no connection became free in the engine's pool {within}")
        if not was_lent and self.dialect.locks_whole_database:
            return DatabaseBusy(f"the writers before this one did not end {within}: {where}")
        return DatabaseUnavailable(
            f"no answer came from {where} {within}: see that it is up and can be reached, or give "
            "a larger timeout= for what takes longer"
        )

    @property
    def _where(self) -> str:
        return self.dialect.address


@dataclass
class _Attempts(Generic[T]):
    """One call's attempts.

    Attributes:
        unknown: An attempt ended without an answer, so it may have been recorded.
        failure: How the last one ended; None while one goes on.
    """

    retrying: Retrying
    work: Callable[[], Awaitable[T]]
    commit: bool
    changes: bool
    seconds: float
    limits: Limits
    deadline: Deadline
    unknown: bool = False
    failure: Exception | None = None

    async def run(self) -> T:
        """Make more of them, if that can help after the first one."""
        try:
            return await self._run()
        except Exception as error:
            translated = self._translated(error)
        raise translated from translated.__cause__

    async def _run(self) -> T:
        assert self.failure is not None
        if not self._is_repeatable(self.failure):
            raise self.failure
        # Imported only when something fails, for it takes a while.
        from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

        async for attempt in AsyncRetrying(
            retry=retry_if_exception(self._is_repeatable),
            stop=self._is_enough,
            wait=wait_random_exponential(multiplier=0.01, max=0.5),
            reraise=True,
        ):
            with attempt:
                return await self._attempt()
        raise AssertionError("the last attempt raises")

    async def _attempt(self) -> T:
        self.failure, self.deadline.was_lent = None, False
        try:
            return await self.work()
        except Exception as error:
            self.take(error)
            raise

    def take(self, error: Exception) -> None:
        """Take note of how an attempt ended."""
        self.failure = error
        if self._may_be_recorded and self._diagnose(error) in _UNANSWERED:
            self.unknown = True

    def expired(self) -> EventMetaError:
        """Return the error for what had not ended in time."""
        if self.failure is not None:  # it was waiting for the next attempt
            return self._translated(self.failure)
        return self.retrying.expired(
            self.limits.timeout,
            unknown=self.unknown or self._may_be_recorded,
            was_lent=self.deadline.was_lent,
        )

    @property
    def _may_be_recorded(self) -> bool:
        """Whether the attempt has got so far that something may have been sent."""
        return self.changes and self.deadline.was_lent

    def _translated(self, error: Exception) -> EventMetaError:
        return self.retrying.translated(
            error, unknown=self.unknown, was_lent=self.deadline.was_lent
        )

    def _diagnose(self, error: BaseException) -> Failure:
        return self.retrying.dialect.diagnose(error)[0]

    def _is_repeatable(self, error: BaseException) -> bool:
        if isinstance(error, EventMetaError):
            return self.commit and isinstance(error, DatabaseBusy)
        failure = self._diagnose(error)
        if failure is Failure.TIMED_OUT:  # a slow read would be slow again
            return self.commit or not self.deadline.was_lent
        if failure is Failure.DUPLICATE:
            return self.commit
        return failure is Failure.CONFLICT or failure in _UNREACHABLE

    def _is_enough(self, state: RetryCallState) -> bool:
        """Return whether there is no time for another attempt."""
        assert self.failure is not None
        unreachable = self._diagnose(self.failure) in _UNREACHABLE
        seconds = self.limits.retry_for if unreachable else self.seconds
        return (state.seconds_since_start or 0) >= seconds or self.deadline.left < _BARELY
