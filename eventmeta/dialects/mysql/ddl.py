"""DDL on MySQL and MariaDB, each statement of which commits by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from sqlalchemy import Column, ForeignKeyConstraint, String, Table
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from eventmeta.core.database_errors import DatabaseBusy
from eventmeta.dialects.ddl import DDL, Part
from eventmeta.dialects.mysql.settings import Settings
from eventmeta.tables.tables import Tables

_SCHEMA_LOCK = "eventmeta_schema"
_DDL = Settings.of(
    {
        "sql_notes": "0",  # else the driver prints a line for each thing that exists
        "lock_wait_timeout": "5",  # while DDL waits for a lock, later queries queue behind it
        "foreign_key_checks": "@@foreign_key_checks",
    }
)


class MySQLSchema(DDL):
    """The DDL of MySQL and MariaDB."""

    event_id_key: ClassVar[tuple[str, ...]] = ("stream_id", "stream_type", "event_id")
    """The columns of the key of event ids, by stream.

    A search for an id that does not exist locks the gap where the id would be.
    """

    @property
    def collation(self) -> str:
        """Return a collation that is binary and does not pad, so that no two texts are equal."""
        return "utf8mb4_nopad_bin" if self.is_mariadb else "utf8mb4_0900_bin"

    @property
    def is_mariadb(self) -> bool:
        """Return whether this is MariaDB; known from the first connection on."""
        return bool(getattr(self.engine.dialect, "is_mariadb", False))

    @property
    def database(self) -> str:
        """Return the database of the store's tables, as an expression."""
        if self.schema is None:
            return "DATABASE()"
        return "'" + self.schema.replace("\\", "\\\\").replace("'", "''") + "'"

    def quoted(self, name: str) -> str:
        """Return ``name`` in backticks, which mean the same in every ``sql_mode``."""
        parts = [name] if self.schema is None else [self.schema, name]
        return ".".join("`" + part.replace("`", "``") + "`" for part in parts)

    def named_here(self, relations: Iterable[str]) -> str:
        """Return the condition that a table of the information schema is one of ``relations``."""
        listed = tuple(relations)
        exact, folded = (
            ", ".join(f"'{name}'" for name in names)
            for names in (listed, [name.lower() for name in listed])
        )
        return (
            f"table_schema = {self.database} AND (BINARY table_name IN ({exact}) "
            f"OR @@lower_case_table_names > 0 AND lower(table_name) IN ({folded}))"
        )

    def column_type(self, kind: TypeEngine[Any]) -> str:
        """Return ``kind`` as this database spells it, with the store's collation."""
        compiled = kind.compile(self.engine.dialect)
        if isinstance(kind.dialect_impl(self.engine.dialect), String):
            return f"{compiled} CHARACTER SET utf8mb4 COLLATE {self.collation}"
        return compiled

    def list_parts(self, relations: Iterable[str]) -> str:
        """Return the query without triggers, which the information schema hides from most users."""
        here = self.named_here(relations)
        table, column, index = (
            f"CONVERT({name} USING utf8mb4)" for name in ("table_name", "column_name", "index_name")
        )
        return f"""SELECT IF(table_type = 'VIEW', 'view', 'table') AS kind, {table} AS relation,
'' AS name FROM information_schema.tables WHERE {here}
UNION ALL SELECT 'column', {table}, {column} FROM information_schema.columns WHERE {here}
UNION ALL SELECT 'index', {table}, {index} FROM information_schema.statistics WHERE {here}
UNION ALL SELECT 'foreign key', {table}, {column} FROM information_schema.key_column_usage
WHERE referenced_table_name IS NOT NULL AND {here}"""

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """Take a named lock, because DDL would commit a transaction and release its locks."""
        locked = await connection.exec_driver_sql(f"SELECT GET_LOCK('{_SCHEMA_LOCK}', 60)")
        if locked.scalar() != 1:
            raise DatabaseBusy("another process has been creating tables for 60 s")
        await connection.exec_driver_sql(_DDL.set_up)

    def finish_schema_change(self) -> Sequence[str]:
        return (
            _DDL.put_back,
            f"SELECT RELEASE_LOCK('{_SCHEMA_LOCK}')",
        )

    def prepare_tables(self, tables: Iterable[Table]) -> None:
        """Give every table the collation that tells all texts apart."""
        for table in tables:
            table.dialect_options["mysql"]["default charset"] = "utf8mb4"
            table.dialect_options["mysql"]["collate"] = self.collation

    def add_column(self, column: Column[Any]) -> str:
        """Return the DDL without the foreign key, which MySQL would ignore in ADD COLUMN."""
        return super().add_column(column).partition(" REFERENCES ")[0]

    def column_definition(self, column: Column[Any]) -> str:
        """Return the definition with the store's collation; upstream's tables may have another."""
        plain = column.type.compile(self.engine.dialect)
        return super().column_definition(column).replace(plain, self.column_type(column.type), 1)

    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """Return the DDL without a check, which would copy the table while all writers wait."""
        return (
            "SET foreign_key_checks = 0",
            self._add_foreign_key(key),
            "SET foreign_key_checks = DEFAULT",
        )

    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Return the triggers, and a table, made last.

        TRUNCATE fires no trigger, but a foreign key from that table forbids it.
        """
        name = tables.events.name
        key = "(stream_id, stream_type, version)"
        refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{name} is append-only'"
        triggers = (
            f"CREATE TRIGGER IF NOT EXISTS {self.quoted(f'{name}_no_{attack.lower()}')} "
            f"BEFORE {attack} ON {self.quoted(name)} FOR EACH ROW {refuse}"
            for attack in ("UPDATE", "DELETE")
        )
        guard = f"{name}_guard"
        return {
            Part("table", guard): (
                *triggers,
                f"CREATE TABLE IF NOT EXISTS {self.quoted(guard)} (stream_id VARCHAR(255), "
                f"stream_type VARCHAR(16), version BIGINT, FOREIGN KEY {key} "
                f"REFERENCES {self.quoted(name)} {key}) "
                f"DEFAULT CHARSET utf8mb4 COLLATE {self.collation}",
            )
        }

    def create_view(self, name: str, definition: str) -> str:
        return f"CREATE OR REPLACE VIEW {self.quoted(name)} AS {definition}"
