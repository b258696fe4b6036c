"""Attempts: which failures of the database pass if one tries again, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from eventmeta.core.database_errors import DatabaseBusy, UnexpectedRowCount
from eventmeta.core.deadline import Deadline, Expired, Limits
from eventmeta.core.errors import EventMetaError
from eventmeta.core.gate import InFlight
from eventmeta.database.failures import UNANSWERED, UNREACHABLE, Failures
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.failure import Failure

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

RETRY_SECONDS = 15.0
"""For how long a conflict with others is retried."""

ORPHANS = 5
"""How often a row that another refers to may turn out to have been deleted meanwhile."""

MISMATCHES = 3
"""How often a statement may change another number of rows than it must."""

_BARELY = 0.05
"""Seconds that are too few for another attempt."""


@dataclass(frozen=True)
class RetryPolicy:
    """Work on one database, as long as the gate lets it in.

    Attributes:
        dialect: The database.
        gate: The gate.
        references: The foreign keys of the store's own: which table refers to which.
    """

    dialect: Dialect
    gate: InFlight
    references: frozenset[tuple[str, str]] = frozenset()

    @property
    def failures(self) -> Failures:
        """What the failures of this database mean to its callers."""
        return Failures(self.dialect)

    async def retried(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        commit: bool,
        limits: Limits,
        changes: bool = True,
        unless_held: bool = False,
    ) -> T:
        """Run ``work``, and again while it fails in a way that passes.

        Args:
            work: What to do. It may be done twice.
            commit: It is an append, whose event ids tell whether it has been done before.
            limits: How long all of it may take, and how long a connection is tried to be had.
            changes: It may change something, so that its outcome may be unknown.
            unless_held: It is not retried if a transaction that stays open holds a row.

        Raises:
            EventMetaError: It failed for good, or the time was up.
        """
        loop = self.gate.enter()
        deadline = Deadline(limits.timeout)

        def made() -> _Attempts[T]:
            return _Attempts(self, work, commit, changes, unless_held, limits, deadline)

        attempts: _Attempts[T] | None = None
        try:
            with deadline:
                try:
                    return await work()
                except Exception as error:
                    attempts = made()
                    attempts.take(error)
                return await attempts.run()
        except Expired:
            failure = (attempts or made()).expired()
        finally:
            self.gate.leave(loop)
        raise failure from failure.__cause__


@dataclass
class _Attempts(Generic[T]):
    """One call's attempts.

    Attributes:
        unknown: An attempt ended without an answer, so it may have been recorded.
        failure: How the last one ended; None while one goes on.
        unreachable_since: When the first ended of the latest that had no connection, in the time of
            the event loop; None if the last one had one.
        orphans: How many ended at a foreign key between tables of ours.
        mismatches: How many ended at an unexpected number of rows.
    """

    retrying: RetryPolicy
    work: Callable[[], Awaitable[T]]
    commit: bool
    changes: bool
    unless_held: bool
    limits: Limits
    deadline: Deadline
    unknown: bool = False
    failure: Exception | None = None
    unreachable_since: float | None = None
    orphans: int = 0
    mismatches: int = 0

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
        failure = self._diagnose(error)
        if self._may_be_recorded and failure in UNANSWERED:
            self.unknown = True
        # A server that let us in, and then lost the connection, is there.
        lost = failure is Failure.DISCONNECTED and self.deadline.was_lent
        if lost or failure not in UNREACHABLE:
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = self._now

    def expired(self) -> EventMetaError:
        """Return the error for what had not ended in time."""
        if self.failure is not None:  # it was waiting for the next attempt
            return self._translated(self.failure)
        return self.retrying.failures.expired(
            self.limits.timeout,
            unknown=self.unknown or self._may_be_recorded,
            was_lent=self.deadline.was_lent,
        )

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def _may_be_recorded(self) -> bool:
        """Whether the attempt has got so far that something may have been sent."""
        return self.changes and self.deadline.was_lent

    def _translated(self, error: Exception) -> EventMetaError:
        return self.retrying.failures.translated(
            error, unknown=self.unknown, was_lent=self.deadline.was_lent
        )

    def _diagnose(self, error: BaseException) -> Failure:
        return self.retrying.dialect.diagnose(error)[0]

    def _is_repeatable(self, error: BaseException) -> bool:
        if isinstance(error, UnexpectedRowCount):  # what others deleted may have come between
            self.mismatches += 1
            return self.commit and self.mismatches < MISMATCHES
        if isinstance(error, EventMetaError):
            return self.commit and isinstance(error, DatabaseBusy)
        failure = self._diagnose(error)
        if failure is Failure.TIMED_OUT:  # a slow read would be slow again
            return self.commit or not self.deadline.was_lent
        if failure is Failure.ORPHANED:
            return self.commit and self._is_a_race(error)
        if failure is Failure.DUPLICATE:
            return self.commit
        if failure is Failure.HELD:
            return not self.unless_held
        return failure is Failure.CONFLICT or failure in UNREACHABLE

    def _is_a_race(self, error: BaseException) -> bool:
        """Return whether a row of ours that another refers to was deleted meanwhile."""
        self.orphans += 1
        rule = self.retrying.dialect.rule_of(error)
        own = (rule.table, rule.refers_to) in self.retrying.references
        return own and self.orphans <= ORPHANS

    def _is_enough(self, state: RetryCallState) -> bool:
        """Return whether there is no time for another attempt."""
        if self.deadline.left < _BARELY:
            return True
        if self.unreachable_since is not None:
            return self._now - self.unreachable_since >= self.limits.retry_for
        return (state.seconds_since_start or 0) >= RETRY_SECONDS
