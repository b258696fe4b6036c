"""A lease: taken, renewed while the work lasts, and given back whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from eventmeta.core.errors import EventMetaError
from eventmeta.core.settle import run_to_completion
from eventmeta.database.database import Database
from eventmeta.projector.checkpoints import CheckpointStatements, Key, LeaseToken, renewal_seconds


@dataclass(frozen=True)
class Lease:
    """The right to move a projection on, as one worker takes it.

    Attributes:
        database: The database.
        checkpoints: Where it is kept.
        key: Of what.
        holder: The worker, which does one thing after the other.
    """

    database: Database
    checkpoints: CheckpointStatements
    key: Key
    holder: str

    async def take(self) -> LeaseToken | None:
        """Take it, or renew it; None if another has it."""
        return await self.database.fold(partial(self.checkpoints.take_lease, self.key, self.holder))

    async def give_back(self) -> None:
        """Let others have it, if it was taken; if that cannot be said, it ends by itself."""
        with suppress(EventMetaError):
            await self.database.fold(partial(self.checkpoints.give_back, self.key, self.holder))

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[LeaseToken | None]:
        """Take it until the end of the block; None if another has it."""
        try:
            yield await self.take()
        finally:
            await self.give_back()

    @asynccontextmanager
    async def renewed(self, claim: LeaseToken) -> AsyncGenerator[None]:
        """Renew it for as long as the block lasts; if it is lost, the block's next step says so."""
        renewing = asyncio.create_task(self._renew(claim), name="eventmeta-lease")
        try:
            yield
        finally:
            renewing.cancel()
            await run_to_completion(asyncio.wait([renewing]))

    async def _renew(self, claim: LeaseToken) -> None:
        while True:
            await asyncio.sleep(renewal_seconds())
            with suppress(EventMetaError):
                await self.database.fold(partial(self.checkpoints.renew, claim))
