"""What a database must be able to do for the store: the contract, and what all share."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import (
    ClauseElement,
    ColumnCollection,
    ColumnElement,
    Constraint,
    Delete,
    Executable,
    FromClause,
    Index,
    Insert,
    PrimaryKeyConstraint,
    Subquery,
    Table,
    UniqueConstraint,
    delete,
    insert,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.statement import Program, Query, Row, Statement, T
from projections import METADATA_EVENTS, AnySelect
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables


LOCK_TIMEOUT_MS = 5_000
"""How long a write waits for a lock that another transaction holds, at each attempt."""


class Failure(enum.Enum):
    """What a driver's error means."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    DUPLICATE = "a unique key exists already"
    TABLE_MISSING = "a table does not exist"
    DISCONNECTED = "the connection was lost"
    OTHER = "anything else"


@dataclass(frozen=True)
class EventRelation:
    """Rows shaped like the log, and how this database takes their payload apart."""

    rows: FromClause
    dialect: Dialect

    @property
    def c(self) -> ColumnCollection[str, Any]:
        """The columns of the log."""
        return self.rows.c

    def changes(self) -> Subquery:
        """One row per changed key."""
        return self.select_changes().subquery("changes")

    def select_changes(self) -> AnySelect:
        """The same, as a statement of its own."""
        events = self.rows.c
        about = [events[name] for name in _ABOUT if name in events]
        # What an app's own event calls "changes" is its own affair.
        ours = or_(*(events.type == name for name in sorted(METADATA_EVENTS)))
        return self.dialect.select_changes(self.rows, about).where(ours)


_ABOUT = (
    "stream_type",
    "stream_id",
    "version",
    "position",
    "event_id",
    "type",
    "actor",
    "recorded_at",
)


class Dialect(ABC):
    """One kind of database, behind one engine."""

    locks_whole_database: ClassVar[bool] = False
    """Whether a writer that is kept waiting would be so in any session."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    def compile(self, executable: Executable) -> Statement:
        """``executable`` as text for this database's driver."""
        return Statement.compile(executable, self.engine.dialect)

    def literal(self, executable: Executable) -> str:
        """``executable`` as text without parameters, for DDL and for parts of other statements."""
        clause = cast(ClauseElement, executable)
        return str(
            clause.compile(dialect=self.engine.dialect, compile_kwargs={"literal_binds": True})
        )

    def time_text(self, value: datetime) -> str:
        """``value`` as a record set holds it."""
        return self._time_text(value)

    @cached_property
    def _time_text(self) -> Callable[[datetime], str]:
        sql = self.engine.dialect
        encode = UtcDateTime().dialect_impl(sql).bind_processor(sql)

        # A whole batch has the same time, or nearly so.
        @lru_cache(maxsize=16)
        def time_text(value: datetime) -> str:
            return str(encode(value) if encode else value)

        return time_text

    def relation(self, rows: FromClause) -> EventRelation:
        """``rows``, which have the columns of the log, as a relation of events."""
        return EventRelation(rows, self)

    # --- Schema ---------------------------------------------------------------------------------

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """The keys of the log. Each unique one contains the stream, so that it can be sharded."""
        return (
            PrimaryKeyConstraint("stream_id", "stream_type", "version"),
            UniqueConstraint("stream_id", "stream_type", "event_id", name=f"uq_{table}_event_id"),
            Index(f"idx_{table}_position", "position"),
        )

    async def check_tables(  # noqa: B027
        self, connection: AsyncConnection, tables: Tables
    ) -> None:
        """Refuse existing tables in which different ids would count as equal."""

    def prepare_tables(self, tables: Tables) -> None:  # noqa: B027
        """Add to the definitions what only the server can tell, before they are created."""

    @abstractmethod
    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """Let no other process create tables until the end of this transaction."""

    def finish_schema_change(self) -> Sequence[str]:
        """What gives the way free again, where the end of the transaction does not."""
        return ()

    @abstractmethod
    def guards(self, tables: Tables) -> Sequence[str]:
        """The DDL that makes the log refuse UPDATE, DELETE and replacement. Can be repeated."""

    @abstractmethod
    def create_view(self, name: str, definition: str) -> str:
        """The DDL of a view that is made unless it exists."""

    # --- Pieces of SQL --------------------------------------------------------------------------

    @abstractmethod
    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        """The rows that the JSON parameter called ``name`` holds, an object each."""

    @abstractmethod
    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        """``about`` and ``key``, ``value``, ``indexed_value`` of each change in ``events.data``."""

    @abstractmethod
    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        """Insert ``source`` into ``table``; where a row exists, overwrite ``update`` in it."""

    def look_up(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        *also: ColumnElement[Any],
    ) -> AnySelect:
        """``also`` of ``wanted``, and ``columns`` of the rows that ``on`` finds for it by index."""
        return select(*also, *columns).where(on)

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """Delete the rows of ``table`` whose primary key is among ``keys``."""
        same = [column == keys.c[column.name] for column in table.primary_key]
        return delete(table).where(*same)

    def current(self, query: AnySelect) -> AnySelect:
        """``query``, reading what is committed now even where the transaction began earlier."""
        return query

    @abstractmethod
    def lock_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """Own the heads named by ``keys``, in their order, until the transaction ends.

        The last statement yields ``stream_id, stream_type, version, recorded_at, now``; a stream
        without events has version 0 or NULL. The parameter ``now`` is the client's clock, for a
        database that has none of its own with microseconds.
        """

    @abstractmethod
    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        """Draw a position for each of ``numbers`` (``n`` = 1, 2, …), fenced for the horizon."""

    def appended(self, tables: Tables, events: FromClause) -> FromClause:
        """The events that this transaction has just inserted, for the read models to fold.

        Args:
            tables: The store's tables.
            events: The record set from which they were inserted. Where positions are drawn under a
                lock, the end of the log from the parameter ``first`` on is the same, and cheaper.
        """
        return events

    def insert_items(self, messages: Table, items: FromClause) -> Sequence[Executable]:
        """Insert ``items`` in the order of ``n``; the last statement yields their ids."""
        source = select(items.c.session_id, items.c.message_data).order_by(items.c.n)
        added = insert(messages).from_select(["session_id", "message_data"], source)
        return (added.returning(messages.c.session_id, messages.c.id),)

    def append_at_once(
        self, tables: Tables, projected: Sequence[Executable], *, with_items: bool
    ) -> str | None:
        """The one statement that does a whole batch of plain appends, where there is one.

        Args:
            tables: The store's tables.
            projected: The statement of each read model over a relation called ``_appended``.
            with_items: Whether the batch adds items as well.
        """
        return None

    @abstractmethod
    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """The highest position below which nothing can still appear, by the last statement.

        Each statement's result is the parameter ``previous`` of the next. They must be run as
        separate transactions.
        """

    # --- Running --------------------------------------------------------------------------------

    @abstractmethod
    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """The rows of each query. One connection, one query after the other, no transaction."""

    @abstractmethod
    async def write(self, program: Program[T], *, single: bool = False) -> T:
        """Run ``program`` as a transaction of its own.

        Args:
            program: What to do.
            single: The program is one statement, which is a transaction by itself.
        """

    @abstractmethod
    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        """Run ``program`` inside the caller's transaction; if it fails, it has changed nothing."""

    async def first_connection(self, tables: Tables) -> None:
        """Connect once, so that it is known what server this is."""
        async with self.engine.connect() as connection:
            await self.check_tables(connection, tables)

    # --- Errors ---------------------------------------------------------------------------------

    @abstractmethod
    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        """What an error of the driver means, and its code."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection on which ``error`` came up is of no further use."""
        return self.diagnose(error)[0] is Failure.DISCONNECTED
