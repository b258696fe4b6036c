"""SQLite, through aiosqlite: a whole transaction in one hop to the connection's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect, Failure
from eventmeta.dialects.pool import checkout, configure
from eventmeta.dialects.statement import Program, Query, Row, T
from eventmeta.settle import settle
from projections import AnySelect
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables

BUSY_TIMEOUT_MS = 5_000
_SETTINGS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


class SharedConnectionBusy(sqlite3.OperationalError):
    """Someone else has a transaction open on the one connection of an in-memory database."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class SQLite(Dialect):
    """The embedded database: one writer at a time, so positions are in commit order."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, _prepare, loop_bound=False)

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
        return select(*fields).subquery(name)

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

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        def work(connection: sqlite3.Connection) -> list[Sequence[Row]]:
            return [_execute(connection, query) for query in queries]

        return await self._in_thread(work)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        def work(connection: sqlite3.Connection) -> T:
            if connection.in_transaction:
                raise SharedConnectionBusy("a transaction is open on the shared connection")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = _run(connection, program)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        return await self._in_thread(work)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        def work(raw: sqlite3.Connection) -> T:
            if not raw.in_transaction:
                raw.execute("BEGIN IMMEDIATE")
            raw.execute("SAVEPOINT eventmeta")
            try:
                return _run(raw, program)
            except BaseException:
                raw.execute("ROLLBACK TO eventmeta")
                raise
            finally:
                raw.execute("RELEASE eventmeta")

        # SQLAlchemy must know that there is something to commit.
        await connection.exec_driver_sql("SELECT 1")
        lent = await connection.get_raw_connection()
        return await settle(_hop(lent.driver_connection, work))

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with checkout(self.engine, self.is_lost) as connection:
            return await _hop(connection, work)

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failure.OTHER, None
        # SQLite has no code of its own for a missing table.
        if code == sqlite3.SQLITE_ERROR and str(error).startswith("no such table"):
            return Failure.TABLE_MISSING, code
        return _FAILURES.get(code, _FAILURES.get(code & 0xFF, Failure.OTHER)), code


_FAILURES = {
    sqlite3.SQLITE_BUSY: Failure.CONFLICT,
    sqlite3.SQLITE_LOCKED: Failure.CONFLICT,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Failure.CONFLICT,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Failure.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Failure.DUPLICATE,
}


def _prepare(dbapi_connection: Any) -> None:
    cursor = dbapi_connection.cursor()
    for setting in _SETTINGS:
        cursor.execute(setting)
    cursor.close()


async def _hop(connection: Any, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``work`` in the thread of an aiosqlite connection, on the connection of the stdlib.

    aiosqlite's public methods are one statement a hop; ``_execute`` is what they are made of.
    """
    result: T = await connection._execute(work, connection._conn)
    return result


def _run(connection: sqlite3.Connection, program: Program[T]) -> T:
    try:
        query = next(program)
        while True:
            query = program.send(_execute(connection, query))
    except StopIteration as done:
        result: T = done.value
        return result


def _execute(connection: sqlite3.Connection, query: Query) -> Sequence[Row]:
    return query.statement.decode(connection.execute(query.statement.sql, query.values).fetchall())
