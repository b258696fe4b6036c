"""MySQL and MariaDB as SQL: JSON tables, a counter row, and no comparison of texts but by bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

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
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.errors import DatabaseBusy, UnsupportedEngine
from projections import AnySelect
from projections.types import LongText, UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SCHEMA_LOCK = "eventmeta_schema"
_COUNTER = "$log"


class MySQLStatements(Dialect):
    """What MySQL is told."""

    @property
    def collation(self) -> str:
        """Binary and without padding, so that no two different texts are equal."""
        return "utf8mb4_nopad_bin" if self._is_mariadb else "utf8mb4_0900_bin"

    @property
    def _is_mariadb(self) -> bool:
        return bool(getattr(self.engine.dialect, "is_mariadb", False))

    # --- Schema ---------------------------------------------------------------------------------

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """DDL commits by itself here, so a named lock stands in for the transaction's."""
        locked = await connection.exec_driver_sql(f"SELECT GET_LOCK('{_SCHEMA_LOCK}', 60)")
        if locked.scalar() != 1:
            raise DatabaseBusy("another process has been creating tables for 60 s")
        # The driver would print a line for whatever exists already.
        await connection.exec_driver_sql("SET sql_notes = 0")

    def finish_schema_change(self) -> Sequence[str]:
        return ("SET sql_notes = DEFAULT", f"SELECT RELEASE_LOCK('{_SCHEMA_LOCK}')")

    async def check_tables(self, connection: AsyncConnection, tables: Tables) -> None:
        names = ", ".join(f"'{name}'" for name in tables.metadata.tables)
        found = await connection.exec_driver_sql(
            "SELECT table_name, column_name, collation_name FROM information_schema.columns "
            f"WHERE table_schema = DATABASE() AND table_name IN ({names}) "
            "AND column_name IN ('session_id', 'stream_id', 'key') "
            "AND collation_name NOT IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin', 'utf8mb4_bin')"
        )
        for row in found.fetchall():
            table, column_name, collation = cast("tuple[str, str, str]", tuple(row))
            raise UnsupportedEngine(
                f"in column {column_name} of table {table} different texts are equal, by its "
                f"collation {collation}, so sessions would mix: ALTER TABLE {table} "
                f"CONVERT TO CHARACTER SET utf8mb4 COLLATE {self.collation}"
            )

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
        return self._json_table(bindparam(name), "$[*]", fields, f"given_{name}")

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
            # Of a small table the planner would read, and so lock, every row.
            .prefix_with("STRAIGHT_JOIN")
            .with_hint(streams, "FORCE INDEX (PRIMARY)")
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
