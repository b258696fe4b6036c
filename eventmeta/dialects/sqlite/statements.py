"""SQLite as SQL: JSON record sets, triggers, and row ids for positions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
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
    bindparam,
    delete,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from projections import AnySelect
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables


class SQLiteStatements(Dialect):
    """What SQLite is told."""

    # --- Schema ---------------------------------------------------------------------------------

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """``position`` is the row id, for AUTOINCREMENT and a feed in the order of storage."""
        return (
            PrimaryKeyConstraint("position"),
            UniqueConstraint("stream_id", "stream_type", "version", name=f"uq_{table}_version"),
            UniqueConstraint("stream_id", "stream_type", "event_id", name=f"uq_{table}_event_id"),
        )

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")

    def guards(self, tables: Tables) -> Sequence[str]:
        """A trigger per attack. ``INSERT OR REPLACE`` deletes without firing a delete trigger."""
        name = tables.events.name
        log = f'"{name}"'
        stream = "stream_id = NEW.stream_id AND stream_type = NEW.stream_type"
        taken = " OR ".join(
            f"EXISTS (SELECT 1 FROM {log} WHERE {key})"
            for key in (
                "position = NEW.position",
                f"{stream} AND version = NEW.version",
                f"{stream} AND event_id = NEW.event_id",
            )
        )
        return tuple(
            f'CREATE TRIGGER IF NOT EXISTS "{name}_{trigger}" BEFORE {attack} '
            f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            for trigger, attack in (
                ("no_update", f"UPDATE ON {log}"),
                ("no_delete", f"DELETE ON {log}"),
                ("no_replace", f"INSERT ON {log} WHEN {taken}"),
            )
        )

    def create_view(self, name: str, definition: str) -> str:
        return f'CREATE VIEW IF NOT EXISTS "{name}" AS {definition}'

    # --- Pieces of SQL --------------------------------------------------------------------------

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        row = func.json_each(bindparam(name)).table_valued("value", name=f"{name}_json")
        fields = [
            func.json_extract(row.c.value, literal_column(f"'$.{field}'"), type_=kind).label(field)
            for field, kind in columns.items()
        ]
        return select(*fields).subquery(f"given_{name}")

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

    def delete_matching(self, table: Table, keys: Subquery) -> Delete:
        """SQLite's DELETE joins nothing, but finds a list of keys in the index."""
        primary_key = list(table.primary_key)
        listed = select(*(keys.c[column.name] for column in primary_key))
        return delete(table).where(tuple_(*primary_key).in_(listed))

    def lock_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """BEGIN IMMEDIATE owns the whole database already."""
        same = (streams.c.stream_id == keys.c.stream_id) & (
            streams.c.stream_type == keys.c.stream_type
        )
        return (
            select(
                keys.c.stream_id,
                keys.c.stream_type,
                streams.c.version,
                streams.c.recorded_at,
                bindparam("now", type_=UtcDateTime()).label("now"),
            ).select_from(keys.outerjoin(streams, same)),
        )

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        counter = text(f"(SELECT seq FROM sqlite_sequence WHERE name = '{tables.events.name}')")
        last: ColumnElement[int] = func.coalesce(literal_column(counter.text), 0)
        return (select(last + numbers.c.n).order_by(numbers.c.n),)

    def appended(self, tables: Tables, events: FromClause) -> FromClause:
        """The end of the log, found by row id.

        Without OFFSET, SQLite would walk the whole log in the order of streams to spare a sort.
        """
        log = tables.events
        end = select(log).where(log.c.position >= bindparam("first"))
        return end.order_by(log.c.position).offset(0).subquery("appended")

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """One writer, so what is not committed has a higher position than all that is."""
        return (select(func.coalesce(func.max(tables.events.c.position), 0)),)
