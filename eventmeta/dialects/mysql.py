"""MySQL and MariaDB, through SQLAlchemy's own execution: asyncmy and aiomysql alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    String,
    Table,
    and_,
    bindparam,
    column,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect, Failure
from eventmeta.dialects.pool import configure
from eventmeta.dialects.statement import Program, Query, Row, T
from eventmeta.settle import settle
from projections import AnySelect
from projections.types import LongText, UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SCHEMA_LOCK = "eventmeta_schema"
_COUNTER = "$log"


class MySQL(Dialect):
    """InnoDB. Positions come from a counter row, locked from the draw to the commit."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        configure(engine, self._prepare_connection, loop_bound=True)

    @property
    def collation(self) -> str:
        """Binary and without padding, so that no two different texts are equal."""
        return "utf8mb4_nopad_bin" if self._is_mariadb else "utf8mb4_0900_bin"

    @property
    def _is_mariadb(self) -> bool:
        return bool(getattr(self.engine.dialect, "is_mariadb", False))

    def _prepare_connection(self, dbapi_connection: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"SET NAMES utf8mb4 COLLATE {self.collation}")
        cursor.close()

    # --- Schema ---------------------------------------------------------------------------------

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """DDL commits by itself here, so a named lock stands in for the transaction's."""
        await connection.exec_driver_sql(f"SELECT GET_LOCK('{_SCHEMA_LOCK}', 60)")
        # The driver would print a line for whatever exists already.
        await connection.exec_driver_sql("SET sql_notes = 0")

    def finish_schema_change(self) -> Sequence[str]:
        return ("SET sql_notes = DEFAULT", f"SELECT RELEASE_LOCK('{_SCHEMA_LOCK}')")

    def prepare_tables(self, tables: Tables) -> None:
        """Give every table the collation that tells all texts apart."""
        for table in tables.metadata.tables.values():
            table.dialect_options["mysql"]["default charset"] = "utf8mb4"
            table.dialect_options["mysql"]["collate"] = self.collation

    def guards(self, tables: Tables) -> Sequence[str]:
        """Triggers. TRUNCATE fires none, but a foreign key makes InnoDB refuse it."""
        name = tables.events.name
        key = "(stream_id, stream_type, version)"
        refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{name} is append-only'"
        triggers = (
            f"CREATE TRIGGER IF NOT EXISTS `{name}_no_{attack.lower()}` "
            f"BEFORE {attack} ON `{name}` FOR EACH ROW {refuse}"
            for attack in ("UPDATE", "DELETE")
        )
        return (
            *triggers,
            f"CREATE TABLE IF NOT EXISTS `{name}_guard` (stream_id VARCHAR(255), "
            f"stream_type VARCHAR(16), version BIGINT, FOREIGN KEY {key} REFERENCES `{name}` {key}"
            f") DEFAULT CHARSET utf8mb4 COLLATE {self.collation}",
        )

    def create_view(self, name: str, definition: str) -> str:
        return f"CREATE OR REPLACE VIEW `{name}` AS {definition}"

    # --- Pieces of SQL --------------------------------------------------------------------------

    def _json_table(
        self, document: Any, path: str, fields: Mapping[str, tuple[TypeEngine[Any], str]], name: str
    ) -> FromClause:
        definitions = ", ".join(
            f"`{field}` {self._field_type(kind)} PATH '{where}'"
            for field, (kind, where) in fields.items()
        )
        return func.json_table(
            document, literal_column(f"'{path}' COLUMNS ({definitions})")
        ).table_valued(
            *(column(field, kind) for field, (kind, _) in fields.items()),
            name=name,
            joins_implicitly=True,
        )

    def _field_type(self, kind: TypeEngine[Any]) -> str:
        compiled = kind.compile(self.engine.dialect)
        if isinstance(kind.dialect_impl(self.engine.dialect), String):
            return f"{compiled} CHARACTER SET utf8mb4 COLLATE {self.collation}"
        return compiled

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        fields = {field: (kind, f"$.{field}") for field, kind in columns.items()}
        return self._json_table(bindparam(name), "$[*]", fields, name)

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        change = self._json_table(
            events.c.data,
            "$.changes[*]",
            {
                "key": (String(255), "$[0]"),
                "value": (LongText, "$[1]"),
                "respelled": (String(64), "$[2]"),
            },
            "change",
        )
        return select(
            *about,
            change.c.key,
            change.c.value,
            func.coalesce(change.c.respelled, change.c.value).label("indexed_value"),
        ).select_from(events, change)

    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        statement = insert(table).from_select(list(columns), source)
        same = {key.name: table.c[key.name] for key in list(table.primary_key)[:1]}
        return statement.on_duplicate_key_update(
            {name: statement.inserted[name] for name in update} or same
        )

    def current(self, query: AnySelect) -> AnySelect:
        """A plain SELECT would read the snapshot of the transaction's first one."""
        return query.with_for_update(read=True)

    def lock_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """Insert first: locking rows that do not exist yet would deadlock on their gaps."""
        missing = select(
            keys.c.stream_id,
            keys.c.stream_type,
            literal(0),
            func.utc_timestamp(literal_column("6")),
        ).order_by(keys.c.stream_id, keys.c.stream_type)
        own = self.upsert(
            streams, ["stream_id", "stream_type", "version", "recorded_at"], missing, ()
        )
        heads = (
            select(
                streams.c.stream_id,
                streams.c.stream_type,
                streams.c.version,
                streams.c.recorded_at,
                func.utc_timestamp(literal_column("6"), type_=UtcDateTime()).label("now"),
            )
            .select_from(keys)
            .join(
                streams,
                and_(
                    streams.c.stream_id == keys.c.stream_id,
                    streams.c.stream_type == keys.c.stream_type,
                ),
            )
            .with_for_update(of=streams if not self._is_mariadb else None)
        )
        return (own, heads)

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        """The counter's row lock makes the order of positions the order of commits."""
        streams = tables.streams
        last = func.last_insert_id
        drawn = select(
            literal(""),
            literal(_COUNTER),
            last(func.count(), type_=BigInteger),
            func.utc_timestamp(literal_column("6")),
        ).select_from(numbers)
        statement = insert(streams).from_select(
            ["stream_id", "stream_type", "version", "recorded_at"], drawn
        )
        draw = statement.on_duplicate_key_update(
            version=last(streams.c.version + statement.inserted.version)
        )
        count = select(func.count()).select_from(numbers.alias("counted")).scalar_subquery()
        return (draw, select(last(type_=BigInteger) - count + numbers.c.n).order_by(numbers.c.n))

    def insert_items(self, messages: Table, items: FromClause) -> Sequence[Executable]:
        """MySQL has no RETURNING. No one else can add to these sessions, whose rows are locked."""
        if self._is_mariadb:
            return super().insert_items(messages, items)
        source = select(items.c.session_id, items.c.message_data).order_by(items.c.n)
        return (
            insert(messages).from_select(["session_id", "message_data"], source),
            select(messages.c.session_id, messages.c.id).where(
                messages.c.id >= func.last_insert_id(),
                messages.c.session_id.in_(select(items.c.session_id)),
            ),
        )

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """Whoever draws a position holds the counter's row until its events are visible."""
        streams = tables.streams
        counter = select(func.coalesce(func.max(streams.c.version), 0)).where(
            streams.c.stream_id == "", streams.c.stream_type == _COUNTER
        )
        return (counter,)

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        async with self._lent() as connection:
            return [await _execute(connection, query) for query in queries]

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        async with self._lent() as connection:
            result = await _run(connection, program)
            await connection.commit()
            return result

    @asynccontextmanager
    async def _lent(self) -> AsyncGenerator[AsyncConnection]:
        """A connection; thrown away on cancellation, when the driver is in the midst of something.

        The pool would try to roll back on it, and print that it cannot.
        """
        async with self.engine.connect() as connection:
            try:
                yield connection
            except asyncio.CancelledError:
                await settle(connection.invalidate())
                raise

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            savepoint = await connection.begin_nested()
            try:
                result = await _run(connection, program)
            except BaseException as error:
                # The victim of a deadlock has lost its whole transaction, savepoints included. To
                # go on in it must fail, or the caller would commit only what comes later.
                whole = self.diagnose(error)[1] == _DEADLOCK and connection.get_transaction()
                await (whole or savepoint).rollback()
                raise
            await savepoint.commit()
            return result

        return await settle(work())

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        if isinstance(error, DBAPIError):
            if error.connection_invalidated:
                return Failure.DISCONNECTED, _number(error.orig)
            return self.diagnose(error.orig) if error.orig else (Failure.OTHER, None)
        number = _number(error)
        if number is None and isinstance(error, OSError | EOFError):
            return Failure.DISCONNECTED, None
        return _FAILURES.get(number or 0, Failure.OTHER), number


_DEADLOCK = 1213
_FAILURES = {
    _DEADLOCK: Failure.CONFLICT,
    1205: Failure.CONFLICT,  # lock wait timeout
    1020: Failure.CONFLICT,  # record has changed since last read
    1452: Failure.CONFLICT,  # the session's row was deleted meanwhile
    1062: Failure.DUPLICATE,
    1146: Failure.TABLE_MISSING,
    1053: Failure.DISCONNECTED,  # server shutdown
    1927: Failure.DISCONNECTED,  # connection was killed
    2003: Failure.DISCONNECTED,
    2006: Failure.DISCONNECTED,
    2013: Failure.DISCONNECTED,
    4031: Failure.DISCONNECTED,  # closed for inactivity
}


def _number(error: BaseException | None) -> int | None:
    first = error.args[0] if error is not None and error.args else None
    return first if isinstance(first, int) and not isinstance(error, OSError) else None


async def _run(connection: AsyncConnection, program: Program[T]) -> T:
    try:
        query = next(program)
        while True:
            query = program.send(await _execute(connection, query))
    except StopIteration as done:
        result: T = done.value
        return result


async def _execute(connection: AsyncConnection, query: Query) -> Sequence[Row]:
    result = await connection.exec_driver_sql(query.statement.sql, query.values)
    return query.statement.decode(result.fetchall()) if result.returns_rows else ()
