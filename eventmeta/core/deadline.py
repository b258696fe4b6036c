"""The deadline of a call, at which its work is cancelled and its connections are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import NamedTuple, Self

from eventmeta.core.per_loop import PerLoop
from eventmeta.core.timeouts import Timeouts

DEFAULT_TIMEOUT = 30.0
DEFAULT_RETRY_FOR = 1.0

LONG_WORK = 20
"""The factor by which the timeout is longer for work that reads the log or builds tables."""

AGAIN = 1.0
"""Seconds after which a task that was cancelled and has not ended is cancelled again."""


class Limits(NamedTuple):
    """The time limits of one caller's waits for the database.

    Attributes:
        timeout: Seconds for a whole call, retries included.
        retry_for: Seconds for which getting a connection is retried.
    """

    timeout: float = DEFAULT_TIMEOUT
    retry_for: float = DEFAULT_RETRY_FOR

    @property
    def long(self) -> Limits:
        """Return the limits for work that reads the whole log or builds tables."""
        return self._replace(timeout=LONG_WORK * self.timeout)


class Expired(Exception):
    """The deadline was reached; the work was cancelled, and its connections are closed."""


_current: ContextVar[Deadline | None] = ContextVar("eventmeta_deadline", default=None)


class Deadline:
    """A time limit for the task's work within a ``with`` block, which then ends with `Expired`.

    When the deadline is reached, the connections lent by then are closed, without waiting for the
    server. So everything that waits for an answer ends, a rollback too. If the task goes on all the
    same, because a driver has lost the cancellation, it is cancelled again.

    Attributes:
        end: The time of the event loop at which it is reached.
        was_lent: Whether a connection was lent since this was last set to False.
    """

    __slots__ = (
        "_again",
        "_cancelling",
        "_cancels",
        "_lent",
        "_loop",
        "_task",
        "_token",
        "end",
        "was_lent",
    )

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.end = self._loop.time() + seconds
        self.was_lent = False
        self._lent: list[Callable[[], None]] = []
        self._cancels = 0
        self._again: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None

    @staticmethod
    def current() -> Deadline | None:
        """Return the deadline of the current task's work, if there is one."""
        found = _current.get()
        if found is None or found._task is None or found._loop is not asyncio.get_running_loop():
            return None
        return found

    @property
    def left(self) -> float:
        """Return the seconds that are left; less than 0 if the deadline has passed."""
        return self.end - self._loop.time()

    @property
    def is_hopeless(self) -> bool:
        """Return whether the deadline passed a while ago, so that waiting longer is useless."""
        return self._cancels > 1

    def lend(self, close: Callable[[], None]) -> None:
        """Remember a connection, which ``close`` closes at once if the deadline is reached."""
        self.was_lent = True
        self._lent.append(close)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        _open.here.add(self)
        self._token: Token[Deadline | None] = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _open.here.remove(self)
        if self._again is not None:
            self._again.cancel()
        self._lent.clear()  # a connection opened here keeps this deadline, in its reader's context
        _current.reset(self._token)
        task, self._task = self._task, None
        assert task is not None
        left = self._cancelling
        for _ in range(self._cancels):
            left = task.uncancel()
        # If nothing else has cancelled the task, the deadline caused the failure.
        ours = isinstance(error, Exception | asyncio.CancelledError)
        if self._cancels and ours and left <= self._cancelling:
            raise Expired from error

    def expire(self) -> None:
        """Cancel the work, and close the connections that were lent for it."""
        assert self._task is not None
        for close in self._lent:
            close()
        self._cancels += 1
        self._task.cancel()
        self._again = self._loop.call_later(AGAIN, self.expire)


_open: PerLoop[Timeouts[Deadline]] = PerLoop(lambda: Timeouts(Deadline.expire))
