"""The contract of a database: what it does for the store, and the defaults that databases share."""

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
    """A kind of database, behind one engine."""

    counts_upserts: ClassVar[bool] = True
    """Whether an upsert counts each row once, inserted or updated."""

    def compile(self, executable: Executable) -> Statement:
        """Return ``executable`` as text for this database's driver."""
        return Statement.compile(executable, self.engine.dialect, self.translation)

    def literal(self, executable: Executable) -> str:
        """Return ``executable`` as text without parameters, for DDL or as a part of a statement."""
        return self._compiled(executable, compile_kwargs={"literal_binds": True})

    def time_text(self, value: datetime) -> str:
        """Return ``value`` as a record set holds it."""
        return self._time_text(value)

    @cached_property
    def _time_text(self) -> Callable[[datetime], str]:
        sql = self.engine.dialect
        encode = UtcDateTime().dialect_impl(sql).bind_processor(sql)

        # All events of a batch have the same time, or nearly the same.
        @lru_cache(maxsize=16)
        def time_text(value: datetime) -> str:
            return str(encode(value) if encode else value)

        return time_text

    def relation(self, rows: FromClause) -> EventRelation:
        """Return ``rows``, which have the columns of the log, as a relation of events."""
        return EventRelation(rows, self)

    # --- Pieces of SQL --------------------------------------------------------------------------

    @abstractmethod
    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        """Return the rows in the JSON parameter called ``name``, one for each of its objects."""

    @abstractmethod
    def keyed_recordset(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], key: ColumnElement[str]
    ) -> tuple[FromClause, ColumnElement[bool]]:
        """Return a record set with a list ``keys`` in each row, and a condition on that list.

        The condition is that the list contains ``key``.
        """

    def is_among(self, name: str, key: ColumnElement[str]) -> ColumnElement[bool] | None:
        """Return the condition that ``key`` is in the list parameter ``name``; None if impossible.

        It is impossible if the database takes no lists as parameters.
        """
        return None

    @abstractmethod
    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        """Insert ``source`` into ``table``; if a row exists, overwrite ``update`` in it."""

    def put_rows(self, table: Table, update: Collection[str] | None = None) -> PutRows:
        """Insert whole rows into ``table``, in the order of its first two columns.

        Args:
            table: The table; a row holds a value for each of its columns.
            update: The columns to overwrite if a row exists; None if no row may exist.
        """
        given = self.recordset("rows", {column.name: column.type for column in table.columns})
        # A name that needs quotes has a type of its own, which cannot be a key of JSON.
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

    def look_up(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        *also: ColumnElement[Any],
        index: str | None = None,
    ) -> AnySelect:
        """Select ``also`` of ``wanted``, and ``columns`` of the rows that ``on`` finds by index.

        ``index`` is the name of that index. It is needed if other indexes begin with the same
        column.
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
        """Select as `look_up` does, but only the last ``wanted.limit`` rows in ``order``.

        The last row comes first.

        Return None if the database can find such rows by index only for one row at a time.
        """
        return None

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """Delete the rows of ``table`` whose primary key is among ``keys``."""
        same = [column == keys.c[column.name] for column in table.primary_key]
        return delete(table).where(*same)

    def exact_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return ``column``, a time of upstream's tables, with equal values for equal moments."""
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
        """Return the events that this transaction has just inserted, for the read models to fold.

        Args:
            tables: The store's tables.
            events: The record set from which they were inserted. If positions are drawn under a
                lock, the end of the log from the parameter ``first`` on holds the same events, and
                is cheaper.
        """
        return events

    def fenced(self, events: AnySelect, position: ColumnElement[int]) -> FromClause:
        """Return ``events`` as a subquery that is read by ``position``, however it is used."""
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
        """Return the one statement that does a whole batch of unconditional appends, or None.

        Args:
            tables: The store's tables.
            projected: The statement of each read model over a relation called ``_appended``.
            with_items: Whether the batch adds items as well.
            for_users: Whether a part of the batch is on behalf of users, who must own their
                streams.
            structure: The statements that keep the tables of items, if there are such tables.
            folded: A read model whose rows are given, by column, as its ``fold`` yields them; they
                have the time of their stream.
        """
        return None

    @abstractmethod
    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """Return statements of which the last yields the horizon.

        The horizon is the highest position below which no event can still appear.

        Each statement's result is the parameter ``previous`` of the next. They must be run as
        separate transactions. NULL means that the server is a standby, which cannot tell.
        """
