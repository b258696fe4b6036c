"""Pauses between transactions, for databases in which a transaction blocks all other writers."""

from __future__ import annotations

import asyncio

from eventmeta.log.event_log import EventLog

TURNS = 8
"""After this many transactions there is always a pause, for writers that get no turn otherwise."""


class Pauses:
    """The pauses in a long series of transactions, in which other writers get their turn.

    Other writers are assumed if the log has grown since the last check. If it has not, there is no
    pause, except after every `TURNS` transactions.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._turns = 0
        self._end = 0

    async def take(self) -> None:
        """Pause if other writers may be waiting. Call this after each transaction."""
        seconds = self._log.database.dialect.throttle_seconds
        if not seconds:
            return
        self._turns += 1
        before, self._end = self._end, await self._log.horizon()
        if self._end > before or self._turns % TURNS == 0:
            await asyncio.sleep(seconds)
