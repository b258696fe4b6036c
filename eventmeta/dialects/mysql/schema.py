"""The schema on MySQL and MariaDB, where each statement of DDL commits by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, ForeignKeyConstraint, String, Table
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from eventmeta.database_errors import DatabaseBusy
from eventmeta.dialects.schema import Part, SchemaDialect

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SCHEMA_LOCK = "eventmeta_schema"


class MySQLSchema(SchemaDialect):
    """The DDL of MySQL and MariaDB."""

    event_id_key: ClassVar[tuple[str, ...]] = ("stream_id", "stream_type", "event_id")
    """By stream, for whoever looks for an id that is not there locks the gap where it would be."""

    @property
    def collation(self) -> str:
        """Binary and without padding, so that no two different texts are equal."""
        return "utf8mb4_nopad_bin" if self.is_mariadb else "utf8mb4_0900_bin"

    @property
    def is_mariadb(self) -> bool:
        """Which of the two it is; known from the first connection on."""
        return bool(getattr(self.engine.dialect, "is_mariadb", False))

    def column_type(self, kind: TypeEngine[Any]) -> str:
        """``kind`` as this database spells it, with the collation that tells all texts apart."""
        compiled = kind.compile(self.engine.dialect)
        if isinstance(kind.dialect_impl(self.engine.dialect), String):
            return f"{compiled} CHARACTER SET utf8mb4 COLLATE {self.collation}"
        return compiled

    def list_parts(self, relations: Iterable[str]) -> str:
        """Triggers are left out, as the information schema hides them from most users."""
        here = named_here(relations)
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
        """A named lock stands in for the transaction's."""
        locked = await connection.exec_driver_sql(f"SELECT GET_LOCK('{_SCHEMA_LOCK}', 60)")
        if locked.scalar() != 1:
            raise DatabaseBusy("another process has been creating tables for 60 s")
        # The driver would print a line for whatever exists already.
        await connection.exec_driver_sql("SET sql_notes = 0")
        # Whoever waits for a lock on a table makes all others wait behind him.
        await connection.exec_driver_sql("SET lock_wait_timeout = 5")

    def finish_schema_change(self) -> Sequence[str]:
        return (
            "SET sql_notes = DEFAULT, lock_wait_timeout = DEFAULT, foreign_key_checks = DEFAULT",
            f"SELECT RELEASE_LOCK('{_SCHEMA_LOCK}')",
        )

    def prepare_tables(self, tables: Iterable[Table]) -> None:
        """Give every table the collation that tells all texts apart."""
        for table in tables:
            table.dialect_options["mysql"]["default charset"] = "utf8mb4"
            table.dialect_options["mysql"]["collate"] = self.collation

    def add_column(self, column: Column[Any]) -> str:
        """Without its foreign key, which MySQL would ignore there."""
        return super().add_column(column).partition(" REFERENCES ")[0]

    def column_definition(self, column: Column[Any]) -> str:
        """With the collation of our tables, for upstream's may have another."""
        plain = column.type.compile(self.engine.dialect)
        return super().column_definition(column).replace(plain, self.column_type(column.type), 1)

    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """With a check, the whole table would be copied while all writers wait."""
        return (
            "SET foreign_key_checks = 0",
            self._add_foreign_key(key),
            "SET foreign_key_checks = DEFAULT",
        )

    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Triggers, and a table, made last. TRUNCATE fires none, but a foreign key forbids it."""
        name = tables.events.name
        key = "(stream_id, stream_type, version)"
        refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{name} is append-only'"
        triggers = (
            f"CREATE TRIGGER IF NOT EXISTS `{name}_no_{attack.lower()}` "
            f"BEFORE {attack} ON `{name}` FOR EACH ROW {refuse}"
            for attack in ("UPDATE", "DELETE")
        )
        guard = f"{name}_guard"
        return {
            Part("table", guard): (
                *triggers,
                f"CREATE TABLE IF NOT EXISTS `{guard}` (stream_id VARCHAR(255), "
                f"stream_type VARCHAR(16), version BIGINT, FOREIGN KEY {key} REFERENCES `{name}` "
                f"{key}) DEFAULT CHARSET utf8mb4 COLLATE {self.collation}",
            )
        }

    def create_view(self, name: str, definition: str) -> str:
        return f"CREATE OR REPLACE VIEW `{name}` AS {definition}"


def named_here(relations: Iterable[str]) -> str:
    """Return the condition that a table of the information schema is one of ``relations``."""
    listed = tuple(relations)
    exact, folded = (
        ", ".join(f"'{name}'" for name in names)
        for names in (listed, [name.lower() for name in listed])
    )
    return (
        f"table_schema = DATABASE() AND (BINARY table_name IN ({exact}) "
        f"OR @@lower_case_table_names > 0 AND lower(table_name) IN ({folded}))"
    )
