"""Projections on MySQL and MariaDB, where DDL commits by itself."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from sqlalchemy import BigInteger, ColumnElement, literal_column
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.executing import afterwards, execute
from eventmeta.dialects.mysql.settings import Settings
from eventmeta.dialects.projector import TRANSACTION_WORDS, ProjectorSQL, Swap, begins_with
from eventmeta.dialects.statement import T
from eventmeta.tables.tables import Tables

_PATIENCE = Settings.of({"lock_wait_timeout": "1"})
"""Seconds that a swap waits for readers before it tries again; later readers queue behind it."""

_COMMITTING_WORDS = (
    r"(?:CREATE(?:\s+OR\s+REPLACE)?|DROP)(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b)"
    r"|ALTER|RENAME|TRUNCATE|GRANT|REVOKE|LOCK|UNLOCK|ANALYZE|OPTIMIZE|REPAIR|FLUSH|RESET|INSTALL"
    r"|UNINSTALL|CACHE|LOAD\s+INDEX|CHECK\s+TABLE|XA|SET\s+(?:@@)?(?:SESSION[\s.]+)?AUTOCOMMIT"
)
"""Statements of DDL and administration, which commit before they begin."""


@asynccontextmanager
async def begun(connection: AsyncConnection) -> AsyncGenerator[None]:
    """Begin a transaction in SQL, because the engine may be in autocommit mode.

    The isolation level is set in SQL too: if a lost connection cannot set it, SQLAlchemy never
    gives the connection back.
    """
    async with connection.begin():
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if not driver.get_transaction_status():  # a listener of the app's may have begun it
            level = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
            await execute(connection, (level, "START TRANSACTION"))
        yield


class MySQLProjecting(ProjectorSQL):
    """The SQL of MySQL and MariaDB for the projector."""

    ending: ClassVar[re.Pattern[str]] = begins_with(f"{TRANSACTION_WORDS}|{_COMMITTING_WORDS}")

    def now_ms(self) -> ColumnElement[int]:
        """Return the clock in UTC, as the session's time zone may have an hour twice a year."""
        since = "timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6))"
        return literal_column(f"CAST({since} DIV 1000 AS SIGNED)", BigInteger())

    def block_appends(self, tables: Tables) -> Sequence[str]:
        """Lock the heads, with which every append begins. The connection must do nothing else."""
        return (f"LOCK TABLES {self.quoted(tables.streams.name)} WRITE",)

    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """Rename all of the tables, or none."""
        renamed = ", ".join(
            f"{self.quoted(old)} TO {self.quoted(new)}"
            for each in swaps
            for old, new in ((each.live.name, each.retired), (each.shadow.name, each.live.name))
        )
        return (f"RENAME TABLE {renamed}",) if swaps else ()

    async def swap(
        self,
        tables: Tables,
        swaps: Sequence[Swap],
        finish: Callable[[AsyncConnection], Awaitable[T]],
        conclude: Callable[[AsyncConnection], Awaitable[None]],
        *,
        exclusive: bool,
    ) -> T:
        """Swap in three transactions, while another connection blocks appends.

        If it ends between two of them, the tables themselves show how far it had come.
        """
        # Take both connections before appends are blocked, because the pool may make one wait.
        async with (
            self.own_engine.connect() as guard,
            self.own_engine.connect() as connection,
            afterwards(guard, ("UNLOCK TABLES", _PATIENCE.put_back)),
        ):
            await execute(guard, (_PATIENCE.set_up,))
            if exclusive:
                await execute(guard, self.block_appends(tables))
            async with begun(connection):
                result = await finish(connection)
            async with connection.begin(), afterwards(connection, (_PATIENCE.put_back,)):
                await execute(connection, (_PATIENCE.set_up, *self.rename(swaps)))
            async with begun(connection):
                await conclude(connection)
        return result
