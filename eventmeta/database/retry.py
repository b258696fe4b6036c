"""Retries: which failures of the database pass, and for how long an operation is retried."""

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
"""For how many seconds a conflict with other transactions is retried."""

ORPHANS = 5
"""How many attempts may fail because a row that another refers to was deleted meanwhile."""

MISMATCHES = 3
"""How many attempts may change another number of rows than they must."""

_BARELY = 0.05
"""The time in seconds that is too short for another attempt."""


@dataclass(frozen=True)
class RetryPolicy:
    """The rules by which operations on one database are retried.

    Attributes:
        dialect: The database.
        gate: The operations in progress; it refuses new ones once the store is closed.
        references: The foreign keys between the store's own tables, as pairs: the table that
            refers, and the table that it refers to.
    """

    dialect: Dialect
    gate: InFlight
    references: frozenset[tuple[str, str]] = frozenset()

    @property
    def failures(self) -> Failures:
        """Return the translator of this database's failures."""
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
        """Run ``work``, and repeat it while it fails in a way that passes.

        Args:
            work: The operation. It may run twice.
            commit: The operation is an append, whose event ids tell whether it was recorded before.
            limits: How long all attempts may take, and how long to try to get a connection.
            changes: The operation may change something, so its outcome may be unknown.
            unless_held: Do not retry if a transaction that stays open holds a row.

        Raises:
            EventMetaError: The operation failed for good, or the time was up.
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
    """The attempts of one call.

    Attributes:
        unknown: An attempt ended without an answer, so its change may have been recorded.
        failure: The error of the last attempt; None while an attempt goes on.
        unreachable_since: When the first of the latest attempts without a connection failed, in the
            time of the event loop; None if the last attempt had a connection.
        orphans: How many attempts failed at a foreign key.
        mismatches: How many attempts changed an unexpected number of rows.
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
        """Make further attempts if the first failure may pass."""
        try:
            return await self._run()
        except Exception as error:
            translated = self._translated(error)
        raise translated from translated.__cause__

    async def _run(self) -> T:
        assert self.failure is not None
        if not self._is_repeatable(self.failure):
            raise self.failure
        # Imported only when something fails, as the import is slow.
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
        """Note the error with which an attempt ended."""
        self.failure = error
        failure = self._diagnose(error)
        if self._may_be_recorded and failure in UNANSWERED:
            self.unknown = True
        # If the connection was lost after it was made, the server can be reached.
        lost = failure is Failure.DISCONNECTED and self.deadline.was_lent
        if lost or failure not in UNREACHABLE:
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = self._now

    def expired(self) -> EventMetaError:
        """Return the error of a call that did not end in time."""
        if self.failure is not None:  # the call was waiting for its next attempt
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
        """Return whether the attempt may have sent a change to the database."""
        return self.changes and self.deadline.was_lent

    def _translated(self, error: Exception) -> EventMetaError:
        return self.retrying.failures.translated(
            error, unknown=self.unknown, was_lent=self.deadline.was_lent
        )

    def _diagnose(self, error: BaseException) -> Failure:
        return self.retrying.dialect.diagnose(error)[0]

    def _is_repeatable(self, error: BaseException) -> bool:
        if isinstance(error, UnexpectedRowCount):  # others may have deleted rows meanwhile
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
        """Return whether a row in our tables that another refers to was deleted meanwhile."""
        self.orphans += 1
        rule = self.retrying.dialect.rule_of(error)
        own = (rule.table, rule.refers_to) in self.retrying.references
        return own and self.orphans <= ORPHANS

    def _is_enough(self, state: RetryCallState) -> bool:
        """Return whether there is no time left for another attempt."""
        if self.deadline.left < _BARELY:
            return True
        if self.unreachable_since is not None:
            return self._now - self.unreachable_since >= self.limits.retry_for
        return (state.seconds_since_start or 0) >= RETRY_SECONDS
