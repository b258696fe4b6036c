"""What a database must be able to do for the store: the contract, and what all share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from sqlalchemy import (
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Insert,
    Subquery,
    Table,
    Update,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base_driver import RunningDialect
from eventmeta.dialects.events import EventRelation, EventSQL
from eventmeta.dialects.item_times import ItemTimes
from eventmeta.dialects.items import ItemSQL, Structure
from eventmeta.dialects.statement import PutRows, Query, Row, Statement, recordset
from eventmeta.dialects.streams import StreamSQL
from eventmeta.tables.tables import Tables
from projections import AnySelect, Projection
from projections.types import UtcDateTime


class Dialect(EventSQL, ItemSQL, ItemTimes, StreamSQL, RunningDialect):
    """One kind of database, behind one engine."""

    counts_upserts: ClassVar[bool] = True
    """Whether a row counts once, whether an upsert inserts or updates it."""

    def compile(self, executable: Executable) -> Statement:
        """``executable`` as text for this database's driver."""
        return Statement.compile(executable, self.engine.dialect, self.translation)

    def literal(self, executable: Executable) -> str:
        """``executable`` as text without parameters, for DDL and for parts of other statements."""
        return self._compiled(executable, compile_kwargs={"literal_binds": True})

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

    # --- Pieces of SQL --------------------------------------------------------------------------

    @abstractmethod
    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        """The rows that the JSON parameter called ``name`` holds, an object each."""

    @abstractmethod
    def keyed_recordset(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], key: ColumnElement[str]
    ) -> tuple[FromClause, ColumnElement[bool]]:
        """A record set whose objects have a list, ``keys``, too; and that ``key`` is in that."""

    def is_among(self, name: str, key: ColumnElement[str]) -> ColumnElement[bool] | None:
        """That ``key`` is in the list that is the parameter ``name``, if there may be such."""
        return None

    @abstractmethod
    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        """Insert ``source`` into ``table``; where a row exists, overwrite ``update`` in it."""

    def put_rows(self, table: Table, update: Collection[str] | None = None) -> PutRows:
        """Insert whole rows into ``table``, in the order of its first two columns.

        Args:
            table: The table; a row holds a value for each of its columns.
            update: What to overwrite where a row exists; None if that must not be.
        """
        given = self.recordset("rows", {column.name: column.type for column in table.columns})
        # Names that need quotes are of a type of their own, which is no key of JSON.
        names = [str(name) for name in table.columns.keys()]  # noqa: SIM118
        source = select(*given.c).order_by(*list(given.c)[:2])
        counted = update is None or self.counts_upserts
        statement = self.compile(
            insert(table).from_select(names, source)
            if update is None
            else self.upsert(table, names, source, update)
        )

        def put(rows: Sequence[Row]) -> Query:
            query = statement(rows=recordset([dict(zip(names, row, strict=True)) for row in rows]))
            return query.affecting(len(rows)) if counted else query

        return put

    def group_read(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        *also: ColumnElement[Any],
        index: str | None = None,
    ) -> AnySelect:
        """``also`` of ``wanted``, and ``columns`` of the rows that ``on`` finds for it by index.

        ``index`` is its name, where others begin with the same column.
        """
        return select(*also, *columns).where(on)

    def look_up_last(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        order: Sequence[ColumnElement[Any]],
        *also: ColumnElement[Any],
    ) -> AnySelect | None:
        """The same of the ``wanted.limit`` rows for each that are last in ``order``, last first.

        None where a database finds those by index for one at a time only.
        """
        return None

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """Delete the rows of ``table`` whose primary key is among ``keys``."""
        same = [column == keys.c[column.name] for column in table.primary_key]
        return delete(table).where(*same)

    def exact_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """``column``, a time of upstream's tables, so that equal moments compare as equal."""
        return column

    def update_matching(
        self, table: Table, keys: Subquery, values: Mapping[str, ColumnElement[Any]]
    ) -> Update:
        """Set ``values`` in the rows of ``table`` whose primary key is among ``keys``."""
        same = [column == keys.c[column.name] for column in table.primary_key]
        return update(table).where(*same).values(values)

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

    def fenced(self, events: AnySelect, position: ColumnElement[int]) -> FromClause:
        """A part of the log that is found by ``position``, whatever is then done with it."""
        return events.subquery("events")

    def append_in_one_statement(
        self,
        tables: Tables,
        projected: Sequence[Executable],
        *,
        with_items: bool,
        for_users: bool,
        structure: Structure | None = None,
        folded: Projection | None = None,
    ) -> str | None:
        """The one statement that does a whole batch of plain appends, where there is one.

        Args:
            tables: The store's tables.
            projected: The statement of each read model over a relation called ``_appended``.
            with_items: Whether the batch adds items as well.
            for_users: Whether some of it is on behalf of users, who must own what they write to.
            structure: What follows the items, if that is kept.
            folded: A read model whose rows are given, by column, as its ``fold`` yields them; they
                have the time of their stream.
        """
        return None

    @abstractmethod
    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """The highest position below which nothing can still appear, by the last statement.

        Each statement's result is the parameter ``previous`` of the next. They must be run as
        separate transactions. NULL: the server is a standby, which cannot tell.
        """
