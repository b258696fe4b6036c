"""Projections on MySQL and MariaDB, where DDL commits by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, ColumnElement, literal_column
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.projecting import ProjectingDialect, Swap, execute
from eventmeta.dialects.statement import T

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_PATIENCE = 1
"""Seconds that a swap waits for readers, and they behind it, before it tries again."""

_PATIENT = "SET lock_wait_timeout = DEFAULT"


class MySQLProjecting(ProjectingDialect):
    """What MySQL is told for the projector."""

    def now_ms(self) -> ColumnElement[int]:
        """In UTC, for the session's zone may have an hour twice a year."""
        since = "timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6))"
        return literal_column(f"CAST({since} DIV 1000 AS SIGNED)", BigInteger())

    def keep_writers_out(self, tables: Tables) -> Sequence[str]:
        """Every append begins with the heads. To be said on a connection that does nothing else."""
        return (
            f"SET lock_wait_timeout = {_PATIENCE}",
            f"LOCK TABLES `{tables.streams.name}` WRITE",
        )

    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """All of them or none."""
        renamed = ", ".join(
            f"`{each.live.name}` TO `{each.retired}`, `{each.shadow.name}` TO `{each.live.name}`"
            for each in swaps
        )
        return (f"SET lock_wait_timeout = {_PATIENCE}", f"RENAME TABLE {renamed}") if swaps else ()

    async def swap(
        self,
        tables: Tables,
        swaps: Sequence[Swap],
        finish: Callable[[AsyncConnection], Awaitable[T]],
        conclude: Callable[[AsyncConnection], Awaitable[None]],
        *,
        exclusive: bool,
    ) -> T:
        """In three transactions, while another connection keeps the writers out.

        If it is broken off between two of them, the tables themselves tell how far it had come.
        """
        engine = self.read_committed()
        async with engine.connect() as guard:
            try:
                if exclusive:
                    await execute(guard, self.keep_writers_out(tables))
                async with self.transaction() as connection:
                    result = await finish(connection)
                async with engine.connect() as connection:
                    try:
                        await execute(connection, self.rename(swaps))
                    finally:
                        await execute(connection, (_PATIENT,))
                async with self.transaction() as connection:
                    await conclude(connection)
            finally:
                await execute(guard, ("UNLOCK TABLES", _PATIENT))
        return result
