"""The swap: shadow tables and their checkpoint take the place of the live ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Table, and_, delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.database_errors import DatabaseFailure, is_of_statement
from eventmeta.core.projection_errors import LeaseLost, ProjectionError, RebuildFailed
from eventmeta.dialects.statement import Program, Query
from eventmeta.log.event_log import EventLog
from eventmeta.projector.catch_up import CatchUp
from eventmeta.projector.checkpoints import BUILDING, LIVE, Key, LeaseToken, key_values
from eventmeta.projector.shadow_tables import ShadowTables
from eventmeta.read_models.registry import RegisteredProjection

_ALL = 2**62


class AlreadySwapped(ProjectionError):
    """The tables were swapped by an earlier attempt; only the checkpoint is missing.

    This happens if DDL commits by itself.
    """


@dataclass(frozen=True)
class Swapping:
    """The swap at the end of a rebuild.

    Attributes:
        log: The event log.
        registered: The projection. If it is inline, nobody may append during the swap.
        shadow: Its tables, old and new.
        mover: The `CatchUp` of the new tables.
        claim: The token of the rebuild's lease.
    """

    log: EventLog
    registered: RegisteredProjection
    shadow: ShadowTables
    mover: CatchUp
    claim: LeaseToken

    async def run(self) -> tuple[int, float]:
        """Swap the tables; return the position, and for how many seconds others may have waited.

        Raises:
            AlreadySwapped: An earlier, interrupted attempt has swapped the tables.
            RebuildFailed: The new tables cannot take the place of the old ones.
        """
        log, dialect = self.log, self.log.database.dialect
        horizon = await log.horizon()
        seconds = 0.0

        async def swap() -> int:
            nonlocal seconds
            if (await log.database.fold(self.shadow.exist)) == (False, True):
                raise AlreadySwapped(
                    self.claim.key.projection, "has the new tables in place already"
                )
            start = time.monotonic()
            try:
                return await dialect.swap(
                    self.log.database.tables,
                    [] if self._stays else self.shadow.swaps,
                    partial(self._finish, horizon),
                    self._conclude,
                    exclusive=self.registered.inline,
                )
            finally:
                seconds = max(seconds, time.monotonic() - start)

        try:
            position = await log.database.repeated(swap)
        except DatabaseFailure as failure:
            if not is_of_statement(failure):
                raise
            raise RebuildFailed(
                self.claim.key.projection,
                "is rebuilt, but cannot take the place of the old table, which goes on serving. "
                "Drop what depends on that table, such as a view; then rebuild() continues here. "
                f"{failure}",
            ) from failure
        await self._clear_away()
        return position, seconds

    async def conclude(self) -> tuple[int, float]:
        """Save the checkpoint of tables that were swapped before; return the same as `run`."""
        log, checkpoints = self.log, self.mover.checkpoints
        found = await log.database.fold(partial(checkpoints.fenced, self.claim))
        await log.database.fold(self._take_the_place)
        await self._clear_away()
        return found.position, 0.0

    async def _clear_away(self) -> None:
        """Drop the retired tables and the shadow tables, and end the rebuild's lease.

        The lease is needed until then, because the next rebuild uses the same names.
        """
        log, checkpoints = self.log, self.mover.checkpoints

        def drop() -> Program[None]:
            yield from checkpoints.fenced(self.claim)
            yield from self.shadow.drop_retired()
            yield from self.shadow.drop()

        def end() -> Program[None]:
            yield from checkpoints.fenced(self.claim)
            yield checkpoints.remove(**key_values(self.claim.key))

        with suppress(LeaseLost):  # the worker that has it now drops the tables
            await log.database.fold(drop)
            await log.database.fold(end)

    @property
    def _stays(self) -> bool:
        """Return whether other tables refer to the live one: then it stays and takes the rows."""
        live = {table.name for table in self.shadow.live}
        return any(
            key.column.table.name in live
            for table in self.log.database.tables.metadata.tables.values()
            for key in table.foreign_keys
        )

    async def _finish(self, horizon: int, connection: AsyncConnection) -> int:
        """Apply the last events; no other worker can update the live tables meanwhile, or later."""
        dialect = self.log.database.dialect
        end = await dialect.write_within(connection, self._lock(horizon))
        step = await self.mover.transactions.carry_out(
            self.mover.advance(self.claim, end, _ALL), connection
        )
        if self._stays:
            await dialect.write_within(connection, self._merge())
        return step.position

    def _lock(self, horizon: int) -> Program[int]:
        """Lock both checkpoints, set the version of the live one to 0, return the last position."""
        yield from self.mover.checkpoints.fenced(self.claim)
        live = Key(self.claim.key.projection, LIVE)
        found = yield from self.mover.checkpoints.find(live)
        if found is not None:
            yield from self.mover.checkpoints.save(live, found._replace(version=0))
        if not self.registered.inline:
            return max(horizon, found.position) if found is not None else horizon
        position = self.log.database.tables.events.c.position
        last = self.log.database.dialect.compile(select(func.coalesce(func.max(position), 0)))
        ((end,),) = yield last()
        return int(end)

    def _merge(self) -> Program[None]:
        for live, shadow in zip(self.shadow.live, self.shadow.tables, strict=True):
            yield from self._take_over(live, shadow)

    def _take_over(self, live: Table, shadow: Table) -> Iterator[Query]:
        dialect = self.log.database.dialect
        same = [live.c[key.name] == shadow.c[key.name] for key in live.primary_key]
        yield dialect.compile(delete(live).where(~exists().where(and_(*same))))()
        columns = [column.name for column in live.columns]
        other = select(*shadow.columns).except_(select(*live.columns)).subquery("other")
        changing = [name for name in columns if name not in live.primary_key.columns]
        source = select(*(other.c[name] for name in columns))
        yield dialect.compile(dialect.upsert(live, columns, source, changing))()

    async def _conclude(self, connection: AsyncConnection) -> None:
        await self.log.database.dialect.write_within(connection, self._take_the_place())

    def _take_the_place(self) -> Program[None]:
        """Make the checkpoint and the parked streams of the new tables those of the live tables."""
        name = self.claim.key.projection
        live, building = key_values(Key(name, LIVE)), key_values(Key(name, BUILDING))
        checkpoints, parking = self.mover.checkpoints, self.mover.parking
        found = yield from checkpoints.fenced(self.claim)
        yield checkpoints.remove(**live)
        yield from checkpoints.begin(Key(name, LIVE), found.version, found.position)
        yield from checkpoints.discard(self.claim)
        yield parking.free_all(**live)
        yield parking.rename(**building, new_state=LIVE)
