"""The swap: shadow tables take the place of the live ones, and their checkpoint that of theirs."""

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
    """The new tables are in place, where DDL commits by itself, and only that is yet to be said."""


@dataclass(frozen=True)
class Swapping:
    """The end of a rebuild.

    Attributes:
        database: Where.
        registered: The projection. Nobody may append while it is swapped, if it is inline.
        shadow: Its tables, old and new.
        mover: What brings the new ones up to date.
        claim: The lease of the rebuild.
    """

    log: EventLog
    registered: RegisteredProjection
    shadow: ShadowTables
    mover: CatchUp
    claim: LeaseToken

    async def run(self) -> tuple[int, float]:
        """The position at the swap, and how many seconds others may have waited for it.

        Raises:
            TablesMoved: An attempt was broken off when the tables were in place already.
            RebuildFailed: They cannot take it.
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
                "is built anew, but cannot take the place of the old table, which goes on serving. "
                "Drop what depends on that, such as a view; then rebuild() goes on from here. "
                f"{failure}",
            ) from failure
        await self._clear_away()
        return position, seconds

    async def conclude(self) -> tuple[int, float]:
        """The same where the tables are in place, and only that is yet to be said."""
        log, checkpoints = self.log, self.mover.checkpoints
        found = await log.database.fold(partial(checkpoints.fenced, self.claim))
        await log.database.fold(self._take_the_place)
        await self._clear_away()
        return found.position, 0.0

    async def _clear_away(self) -> None:
        """Under the lease, which ends with that: the next rebuild uses the same names."""
        log, checkpoints = self.log, self.mover.checkpoints

        def drop() -> Program[None]:
            yield from checkpoints.fenced(self.claim)
            yield from self.shadow.drop_retired()
            yield from self.shadow.drop()

        def end() -> Program[None]:
            yield from checkpoints.fenced(self.claim)
            yield checkpoints.remove(**key_values(self.claim.key))

        with suppress(LeaseLost):  # whoever has it now clears away
            await log.database.fold(drop)
            await log.database.fold(end)

    @property
    def _stays(self) -> bool:
        """Whether other tables refer to the live one, so that it has to stay and takes the rows."""
        live = {table.name for table in self.shadow.live}
        return any(
            key.column.table.name in live
            for table in self.log.database.tables.metadata.tables.values()
            for key in table.foreign_keys
        )

    async def _finish(self, horizon: int, connection: AsyncConnection) -> int:
        """Apply the last events; nobody else moves the live tables on meanwhile, or afterwards."""
        dialect = self.log.database.dialect
        end = await dialect.write_within(connection, self._lock(horizon))
        step = await self.mover.transactions.carry_out(
            self.mover.advance(self.claim, end, _ALL), connection
        )
        if self._stays:
            await dialect.write_within(connection, self._merge())
        return step.position

    def _lock(self, horizon: int) -> Program[int]:
        """Own both checkpoints, and let the live one be of no version. The last position."""
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
        """The checkpoint and the parked streams of the new tables become those of the live ones."""
        name = self.claim.key.projection
        live, building = key_values(Key(name, LIVE)), key_values(Key(name, BUILDING))
        checkpoints, parking = self.mover.checkpoints, self.mover.parking
        found = yield from checkpoints.fenced(self.claim)
        yield checkpoints.remove(**live)
        yield from checkpoints.begin(Key(name, LIVE), found.version, found.position)
        yield from checkpoints.discard(self.claim)
        yield parking.free_all(**live)
        yield parking.rename(**building, new_state=LIVE)
