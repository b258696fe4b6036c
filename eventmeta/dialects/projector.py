"""What a database must be able to do for the projector: clocks, swaps, and folding in bulk."""

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
    """A table that takes the place of another.

    Attributes:
        live: The table that readers know.
        shadow: What takes its place.
        retired: What the old one is called afterwards, where it is not dropped at once.
    """

    live: Table
    shadow: Table
    retired: str


class ProjectorSQL(ConnectingDialect, ABC):
    """Projections on one kind of database, behind one engine."""

    events_per_fill: ClassVar[int] = 200_000
    """About how many events one transaction folds into a shadow table."""

    breather: ClassVar[float] = 0.0
    """Seconds of a pause after such a transaction, for those who wait for the whole database."""

    exports_at_once: ClassVar[int] = 1
    """How many parts of the log are exported at the same time, each over a connection."""

    indexes_first: ClassVar[bool] = False
    """Whether a shadow table gets its indexes before its rows, for making them would block."""

    ending: ClassVar[re.Pattern[str]] = begins_with(TRANSACTION_WORDS)
    """Matches the statements that end the transaction that they are part of."""

    def ends_transaction(self, statement: str) -> bool:
        """Return whether ``statement`` would end the transaction that it is part of."""
        return self.ending.match(statement) is not None

    def explain_lost_savepoint(self, error: Exception) -> Exception:
        """Return what it means that a savepoint can be neither released nor rolled back to."""
        return error

    @property
    def is_within(self) -> bool:
        """Whether a projection calls this in a transaction that readers wait for."""
        return False

    @abstractmethod
    def now_ms(self) -> ColumnElement[int]:
        """The clock of the database, which all processes share: milliseconds since 1970."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction of SQLAlchemy's, which nobody else in this process takes part in.

        Each of its statements sees what is committed by then.
        """

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        """A part of a transaction that has begun; if it fails, it has changed nothing."""
        async with connection.begin_nested():
            yield

    @abstractmethod
    async def fold(self, program: Program[T]) -> T:
        """Run a program that folds the log, as a transaction in which that locks nothing."""

    def oldest_append(self, tables: Tables) -> Executable | None:
        """``position, milliseconds``: a bound below the oldest append that is open, and its age.

        The age is NULL where the role may not know it. None where the database does not tell.
        """
        return None

    # --- Hints ----------------------------------------------------------------------------------

    async def hint(self, tables: Tables) -> None:
        """Tell other processes that there are new events, where the database can."""

    @asynccontextmanager
    async def hints(self, tables: Tables, give: Callable[[], None]) -> AsyncGenerator[None]:
        """Call ``give`` at each hint from any process, until the end of the block."""
        yield

    def measure(self, table: Table) -> Sequence[str]:
        """Let the planner know how many rows there are, where it learns that by and by only."""
        return ()

    # --- Exporting ------------------------------------------------------------------------------

    async def export(self, query: Query) -> bytes | None:
        """The rows of ``query`` as CSV, quoted with U+0001; None if there is no quick way."""
        return None

    def size(self, column: ColumnElement[str]) -> ColumnElement[int]:
        """About how many bytes a text takes."""
        return func.octet_length(column)

    def plain(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """``column`` of the log without what a driver makes of it: a time is in UTC."""
        return type_coerce(column, NullType())

    # --- Swapping -------------------------------------------------------------------------------

    def shadow_indexes(self, live: Table) -> Program[dict[str, str]]:
        """What the indexes of a table are called while it is to take the place of ``live``."""
        yield from ()
        return {str(index.name): str(index.name) for index in live.indexes}

    @abstractmethod
    def block_appends(self, tables: Tables) -> Sequence[str]:
        """Let nobody append until the end of the transaction, and wait for those who do."""

    @abstractmethod
    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """Put the shadow tables in the place of the live ones."""

    async def swap(
        self,
        tables: Tables,
        swaps: Sequence[Swap],
        finish: Callable[[AsyncConnection], Awaitable[T]],
        conclude: Callable[[AsyncConnection], Awaitable[None]],
        *,
        exclusive: bool,
    ) -> T:
        """Bring shadow tables up to date, and put them in the place of the live ones, at once.

        Args:
            tables: The store's tables.
            swaps: What takes the place of what; nothing if ``finish`` does it all.
            finish: Brings the shadow tables up to date.
            conclude: Says so in the checkpoints.
            exclusive: Nobody may append meanwhile.
        """
        async with self.transaction() as connection:
            if exclusive:
                await execute(connection, self.block_appends(tables))
            result = await finish(connection)
            await execute(connection, self.rename(swaps))
            await conclude(connection)
        return result
