"""SQLite as SQL: JSON record sets, triggers, and row ids for positions."""

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
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.item_times import last_time
from eventmeta.dialects.sqlite.ddl import SQLiteSchema
from eventmeta.dialects.sqlite.items import SQLiteItems
from eventmeta.dialects.sqlite.projector import SQLiteProjecting
from eventmeta.dialects.statement import PutRows, Query
from eventmeta.tables.tables import Tables
from projections import AnySelect
from projections.types import LongText, UtcDateTime


class SQLiteStatements(SQLiteItems, SQLiteSchema, SQLiteProjecting, Dialect):
    """What SQLite is told."""

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
        """As the end of a text that begins with the version."""
        text = func.printf(literal_column("'%019d'"), version).op("||")(time)
        last = func.max(case((among, text)))
        return func.substr(last, literal_column("20"), type_=UtcDateTime())

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        pair = func.json_each(events.c.data, literal_column("'$.changes'")).table_valued(
            "value", name="change", joins_implicitly=True
        )

        def item(index: int) -> ColumnElement[Any]:
            return func.json_extract(pair.c.value, literal_column(f"'$[{index}]'"))

        return select(
            *about,
            item(0).label("key"),
            item(1).label("value"),
            func.coalesce(item(2), item(1)).label("indexed_value"),
        ).select_from(events, pair)

    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        # Without a WHERE, SQLite would take ON CONFLICT for a join condition.
        statement = insert(table).from_select(list(columns), source.where(true()))
        if not update:
            return statement.on_conflict_do_nothing()
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: statement.excluded[name] for name in update},
        )

    def put_rows(self, table: Table, update: Collection[str] | None = None) -> PutRows:
        """Row by row, which takes SQLite less time than to take a record set apart."""
        statement = insert(table)
        if update is not None:
            statement = statement.on_conflict_do_update(
                index_elements=list(table.primary_key),
                set_={name: statement.excluded[name] for name in update},
            )
        compiled = self.compile(statement)
        return lambda rows: Query(compiled, rows, each=True, affects=len(rows))

    def exact_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """A text with or without a fraction, depending on who wrote it: here always with one."""
        exact = column.op("||")(literal_column("'.000000'"))
        return func.substr(exact, literal_column("1"), literal_column("26"), type_=column.type)

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """SQLite's DELETE joins nothing, but finds a list of keys in the index."""
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
        """BEGIN IMMEDIATE owns the whole database already, with all that is missing in it."""
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
        """Texts of whole seconds, as upstream's own: a fraction would come after its next item.

        Compared as texts, of which one with a fraction is the later of two of a second.
        """
        now: ColumnElement[datetime] = func.current_timestamp(type_=messages.c.created_at.type)
        return func.max(now, func.coalesce(last_time(messages, items.c.session_id), now))

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        counter = text(f"(SELECT seq FROM sqlite_sequence WHERE name = '{tables.events.name}')")
        last: ColumnElement[int] = func.coalesce(literal_column(counter.text), 0)
        return (select(last + numbers.c.n).order_by(numbers.c.n),)

    def appended(self, tables: Tables, events: FromClause) -> FromClause:
        """The end of the log, found by row id."""
        log = tables.events
        return self.fenced(select(log).where(log.c.position >= bindparam("first")), log.c.position)

    def fenced(self, events: AnySelect, position: ColumnElement[int]) -> FromClause:
        """Else SQLite would walk the whole log in the order of streams, to spare a sort."""
        return events.order_by(position).offset(0).subquery("events")

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """One writer, so what is not committed has a higher position than all that is."""
        return (select(func.coalesce(func.max(tables.events.c.position), 0)),)
