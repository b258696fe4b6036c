"""The contract of a database for the projector: clocks, swaps, and folding in bulk."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Executable, Table, func, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import NullType

from eventmeta.dialects.connecting import ConnectingDialect
from eventmeta.dialects.executing import execute
from eventmeta.dialects.statement import Program, Query, T
from eventmeta.tables.tables import Tables

_BEFORE_WORDS = r"(?:\s|;|--[^\n]*\n|/\*.*?\*/)*"


def begins_with(words: str) -> re.Pattern[str]:
    """Return the pattern of a statement that begins, after comments, with one of ``words``."""
    return re.compile(rf"{_BEFORE_WORDS}(?:{words})\b", re.IGNORECASE | re.DOTALL)


TRANSACTION_WORDS = (
    r"BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|PREPARE\s+TRANSACTION"
    r"|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b)"
)


@dataclass(frozen=True)
class Swap:
    """A table that replaces another.

    Attributes:
        live: The table that readers know.
        shadow: The table that replaces it.
        retired: The name of the old table afterwards, if it is not dropped at once.
    """

    live: Table
    shadow: Table
    retired: str


class ProjectorSQL(ConnectingDialect, ABC):
    """Projections on one kind of database, behind one engine."""

    events_per_fill: ClassVar[int] = 200_000
    """The approximate number of events that one transaction folds into a shadow table."""

    throttle_seconds: ClassVar[float] = 0.0
    """Seconds of a pause after such a transaction, for writers that wait for the whole database."""

    exports_at_once: ClassVar[int] = 1
    """The number of parts of the log that are exported at the same time, each over a connection."""

    indexes_first: ClassVar[bool] = False
    """Whether a shadow table gets its indexes before its rows, because later they would block."""

    ending: ClassVar[re.Pattern[str]] = begins_with(TRANSACTION_WORDS)
    """A pattern of the statements that end their own transaction."""

    def ends_transaction(self, statement: str) -> bool:
        """Return whether ``statement`` would end its own transaction."""
        return self.ending.match(statement) is not None

    def explain_lost_savepoint(self, error: Exception) -> Exception:
        """Return the error that explains why a savepoint is lost.

        A lost savepoint can be neither released nor rolled back to.
        """
        return error

    @property
    def is_within(self) -> bool:
        """Return whether a projection calls this in a transaction that readers wait for."""
        return False

    @abstractmethod
    def now_ms(self) -> ColumnElement[int]:
        """Return the clock of the database, which all processes share: milliseconds since 1970."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction of SQLAlchemy's, which no other task of this process takes part in.

        Each of its statements sees everything that is committed by then.
        """

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        """Begin a savepoint in an open transaction; if the block fails, it has changed nothing."""
        async with connection.begin_nested():
            yield

    @abstractmethod
    async def fold(self, program: Program[T]) -> T:
        """Run a program that folds the log, as a transaction in which folding locks nothing."""

    def oldest_append(self, tables: Tables) -> Executable | None:
        """Return a query for a bound below the oldest open append, and that append's age.

        Its columns are ``position, milliseconds``. The age is NULL if the role may not know it.
        Return None if the database does not tell.
        """
        return None

    # --- Hints ----------------------------------------------------------------------------------

    async def hint(self, tables: Tables) -> None:
        """Tell other processes that there are new events, if the database can."""

    @asynccontextmanager
    async def hints(self, tables: Tables, give: Callable[[], None]) -> AsyncGenerator[None]:
        """Call ``give`` at each hint from any process, until the end of the block."""
        yield

    def analyze(self, table: Table) -> Sequence[str]:
        """Return statements that count a table for the planner, if it learns too slowly."""
        return ()

    # --- Exporting ------------------------------------------------------------------------------

    async def export(self, query: Query) -> bytes | None:
        """Return the rows of ``query`` as CSV, quoted with U+0001; None if it has no quick way."""
        return None

    def size(self, column: ColumnElement[str]) -> ColumnElement[int]:
        """Return about how many bytes a text takes."""
        return func.octet_length(column)

    def plain(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return ``column`` of the log without the driver's conversion: a time is in UTC."""
        return type_coerce(column, NullType())

    # --- Swapping -------------------------------------------------------------------------------

    def shadow_indexes(self, live: Table) -> Program[dict[str, str]]:
        """Return the names of a table's indexes until the table replaces ``live``."""
        yield from ()
        return {str(index.name): str(index.name) for index in live.indexes}

    @abstractmethod
    def block_appends(self, tables: Tables) -> Sequence[str]:
        """Block appends until the end of the transaction, after waiting for those in progress."""

    @abstractmethod
    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """Return statements that replace the live tables by the shadow tables."""

    async def swap(
        self,
        tables: Tables,
        swaps: Sequence[Swap],
        finish: Callable[[AsyncConnection], Awaitable[T]],
        conclude: Callable[[AsyncConnection], Awaitable[None]],
        *,
        exclusive: bool,
    ) -> T:
        """Bring shadow tables up to date, and replace the live tables by them, in one step.

        Args:
            tables: The store's tables.
            swaps: The tables to replace; none if ``finish`` does everything.
            finish: Brings the shadow tables up to date.
            conclude: Records the swap in the checkpoints.
            exclusive: Whether appends are blocked meanwhile.
        """
        async with self.transaction() as connection:
            if exclusive:
                await execute(connection, self.block_appends(tables))
            result = await finish(connection)
            await execute(connection, self.rename(swaps))
            await conclude(connection)
        return result
