"""SQL of SQLite: JSON record sets, triggers, and row ids for positions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Insert,
    Integer,
    Subquery,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite import Insert as SQLiteInsert
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.events import select_pairs
from eventmeta.dialects.item_times import last_time
from eventmeta.dialects.sqlite.ddl import SQLiteSchema
from eventmeta.dialects.sqlite.items import SQLiteItems
from eventmeta.dialects.sqlite.projector import SQLiteProjecting
from eventmeta.dialects.statement import PutRows, Query
from eventmeta.tables.tables import Tables
from projections import AnySelect
from projections.types import LongText, UtcDateTime


class SQLiteStatements(SQLiteItems, SQLiteSchema, SQLiteProjecting, Dialect):
    """The SQL of SQLite."""

    # --- Pieces of SQL --------------------------------------------------------------------------

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        row = func.json_each(bindparam(name)).table_valued("value", name=f"{name}_json")
        fields = [
            func.json_extract(row.c.value, literal_column(f"'$.{field}'"), type_=kind).label(field)
            for field, kind in columns.items()
        ]
        return select(*fields).subquery(f"given_{name}")

    def keyed_recordset(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], key: ColumnElement[str]
    ) -> tuple[FromClause, ColumnElement[bool]]:
        rows = self.recordset(name, {**columns, "keys": LongText})
        each = func.json_each(rows.c["keys"]).table_valued("value", name="each_key")
        return rows, key.in_(select(each.c.value))

    def json_text(self, document: ColumnElement[str], name: str) -> ColumnElement[str]:
        return func.json_extract(document, literal_column(f"'$.{name}'"), type_=LongText)

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Aggregate texts of version and time, and return the time at the end of the greatest."""
        text = func.printf(literal_column("'%019d'"), version).op("||")(time)
        last = func.max(case((among, text)))
        return func.substr(last, literal_column("20"), type_=UtcDateTime())

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        pair = func.json_each(events.c.data, literal_column("'$.changes'")).table_valued(
            "value", name="change", joins_implicitly=True
        )

        def item(index: int) -> ColumnElement[Any]:
            return func.json_extract(pair.c.value, literal_column(f"'$[{index}]'"))

        return select_pairs(about, item).select_from(events, pair)

    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        # Without a WHERE, SQLite would take ON CONFLICT for a join condition.
        statement = insert(table).from_select(list(columns), source.where(true()))
        return (
            _overwriting(statement, table, update) if update else statement.on_conflict_do_nothing()
        )

    def put_rows(self, table: Table, update: Collection[str] | None = None) -> PutRows:
        """Insert row by row, which takes SQLite less time than reading a record set."""
        statement = insert(table)
        if update is not None:
            statement = _overwriting(statement, table, update)
        compiled = self.compile(statement)
        return lambda rows: Query(compiled, rows, each=True, affects=len(rows))

    def exact_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return ``column`` with a fraction of a second in every text; not all writers give one."""
        exact = column.op("||")(literal_column("'.000000'"))
        return func.substr(exact, literal_column("1"), literal_column("26"), type_=column.type)

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """Delete by a list of keys, which SQLite finds by index: its DELETE has no joins."""
        primary_key = list(table.primary_key)
        listed = select(*(keys.c[column.name] for column in primary_key))
        return delete(table).where(tuple_(*primary_key).in_(listed))

    def update_matching(
        self, table: Table, keys: Subquery, values: Mapping[str, ColumnElement[Any]]
    ) -> Update:
        primary_key = list(table.primary_key)
        listed = select(*(keys.c[column.name] for column in primary_key))
        return update(table).where(tuple_(*primary_key).in_(listed)).values(values)

    def lock_streams(self, tables: Tables, keys: FromClause, *, waits: bool) -> Executable:
        """Look up the heads. BEGIN IMMEDIATE has locked the database, missing heads included."""
        streams = tables.streams
        same = (streams.c.stream_id == keys.c.stream_id) & (
            streams.c.stream_type == keys.c.stream_type
        )
        return select(
            keys.c.stream_id,
            keys.c.stream_type,
            literal_column("1", Integer()).label("exists"),
            streams.c.version.label("seen_version"),
            streams.c.user_id.label("seen_user_id"),
            func.coalesce(streams.c.version, 0).label("version"),
            streams.c.recorded_at,
            streams.c.user_id,
            literal_column("0", Integer()).label("held"),
            null().label("now"),
        ).select_from(keys.outerjoin(streams, same))

    def time_of_new_item(self, messages: Table, items: FromClause) -> ColumnElement[datetime]:
        """Return a time in whole seconds, as upstream's texts have it.

        A text with a fraction would come after upstream's next item in the same second.

        Times are compared as texts: of two in one second, the one with a fraction is the later.
        """
        now: ColumnElement[datetime] = func.current_timestamp(type_=messages.c.created_at.type)
        return func.max(now, func.coalesce(last_time(messages, items.c.session_id), now))

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        counter = text(f"(SELECT seq FROM sqlite_sequence WHERE name = '{tables.events.name}')")
        last: ColumnElement[int] = func.coalesce(literal_column(counter.text), 0)
        return (select(last + numbers.c.n).order_by(numbers.c.n),)

    def appended(self, tables: Tables, events: FromClause) -> FromClause:
        """Return the end of the log, found by row id."""
        log = tables.events
        return self.fenced(select(log).where(log.c.position >= bindparam("first")), log.c.position)

    def fenced(self, events: AnySelect, position: ColumnElement[int]) -> FromClause:
        """Return the events in order: SQLite would read the whole log by stream to avoid a sort."""
        return events.order_by(position).offset(0).subquery("events")

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """Return the last position.

        With one writer, positions that are not committed are above all that are.
        """
        return (select(func.coalesce(func.max(tables.events.c.position), 0)),)


def _overwriting(statement: SQLiteInsert, table: Table, update: Collection[str]) -> SQLiteInsert:
    """Return ``statement``, which overwrites ``update`` in a row of the same key."""
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: statement.excluded[name] for name in update},
    )
