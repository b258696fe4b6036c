"""The moment by which a piece of work must have ended, and what is closed if it has not."""

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
"""How many times longer a statement may take that goes through the log, or builds tables."""

AGAIN = 1.0
"""Seconds after which a task is cancelled again that has not ended by then."""


class Limits(NamedTuple):
    """How long a caller waits for the database.

    Attributes:
        timeout: Seconds for a whole call, retries included.
        retry_for: Seconds for which a connection is tried to be had.
    """

    timeout: float = DEFAULT_TIMEOUT
    retry_for: float = DEFAULT_RETRY_FOR

    @property
    def long(self) -> Limits:
        """The limits of work that goes through the log, or builds tables."""
        return self._replace(timeout=LONG_WORK * self.timeout)


class Expired(Exception):
    """The time is up; what was going on was cancelled, and its connections are closed."""


_current: ContextVar[Deadline | None] = ContextVar("eventmeta_deadline", default=None)


class Deadline:
    """Ends what the task does within the block, when the time is up, by `Expired`.

    It closes the connections that are lent by then, without waiting for the server. So whatever
    waits for an answer ends, a rollback too. A task that goes on all the same, because a driver has
    lost the cancellation, is cancelled again.

    Attributes:
        end: When, in the time of the event loop.
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
        """Return the deadline of what is being done, if there is one."""
        found = _current.get()
        if found is None or found._task is None or found._loop is not asyncio.get_running_loop():
            return None
        return found

    @property
    def left(self) -> float:
        """How many seconds are left; less than 0 if the time is up."""
        return self.end - self._loop.time()

    @property
    def is_hopeless(self) -> bool:
        """Whether the time was up a while ago, so that there is nothing to wait for any more."""
        return self._cancels > 1

    def lend(self, close: Callable[[], None]) -> None:
        """Take note of a connection, which ``close`` closes at once if it is still in use."""
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
        self._lent.clear()  # a connection opened within it keeps it, in the context of its reader
        _current.reset(self._token)
        task, self._task = self._task, None
        assert task is not None
        left = self._cancelling
        for _ in range(self._cancels):
            left = task.uncancel()
        # Nobody else has cancelled it, so the failure comes of this.
        ours = isinstance(error, Exception | asyncio.CancelledError)
        if self._cancels and ours and left <= self._cancelling:
            raise Expired from error

    def expire(self) -> None:
        """Cancel what is being done, and close what was lent for it."""
        assert self._task is not None
        for close in self._lent:
            close()
        self._cancels += 1
        self._task.cancel()
        self._again = self._loop.call_later(AGAIN, self.expire)


_open: PerLoop[Timeouts[Deadline]] = PerLoop(lambda: Timeouts(Deadline.expire))
