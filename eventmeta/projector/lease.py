"""The lease on a projection: it is taken, renewed while the work lasts, and always released."""

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
    """The lease on one projection, as one worker takes it.

    Attributes:
        database: The database.
        checkpoints: The statements for the table that keeps the lease.
        key: The key of the checkpoint.
        holder: The name of the worker, which does one thing after the other.
    """

    database: Database
    checkpoints: CheckpointStatements
    key: Key
    holder: str

    async def take(self) -> LeaseToken | None:
        """Take the lease, or renew it; return None if another worker holds it."""
        return await self.database.fold(partial(self.checkpoints.take_lease, self.key, self.holder))

    async def give_back(self) -> None:
        """Release the lease if it is held. If that fails, the lease expires."""
        with suppress(EventMetaError):
            await self.database.fold(partial(self.checkpoints.give_back, self.key, self.holder))

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[LeaseToken | None]:
        """Hold the lease until the end of the block; yield None if another worker holds it."""
        try:
            yield await self.take()
        finally:
            await self.give_back()

    @asynccontextmanager
    async def renewed(self, claim: LeaseToken) -> AsyncGenerator[None]:
        """Renew the lease while the block lasts.

        If the lease is lost, the next step of the block raises `LeaseLost`.
        """
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
