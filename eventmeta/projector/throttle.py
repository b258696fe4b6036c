"""Pauses between transactions, where one keeps all other writers out."""

from __future__ import annotations

import asyncio

from eventmeta.log.event_log import EventLog

TURNS = 8
"""After so many transactions there is a pause in any case, for those who get no turn otherwise."""


class Pauses:
    """Lets others write whom a long series of transactions would keep waiting.

    They are there if the log has grown since the last look at it. For nobody there is no pause.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._turns = 0
        self._end = 0

    async def take(self) -> None:
        """To be awaited after each transaction."""
        seconds = self._log.database.dialect.breather
        if not seconds:
            return
        self._turns += 1
        before, self._end = self._end, await self._log.horizon()
        if self._end > before or self._turns % TURNS == 0:
            await asyncio.sleep(seconds)
