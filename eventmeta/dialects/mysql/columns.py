"""Columns of MySQL and MariaDB, which may cut or convert values that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Column, Table
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.columns import (
    Fault,
    FoundColumn,
    Mend,
    characters,
    holds_item_id,
    is_exact_time,
    is_integer,
    is_time,
    is_unlimited_text,
)
from eventmeta.dialects.ddl import foreign_keys
from eventmeta.dialects.mysql.ddl import MySQLSchema

_EXACT = ("utf8mb4_nopad_bin", "utf8mb4_0900_bin")
_TEXTS = re.compile(r"(tiny|medium)?text|varchar\(\d+\)")
_VARYING = re.compile(r"varchar\((\d+)\)")


class MySQLColumns(MySQLSchema):
    """The columns of MySQL and MariaDB."""

    def describe_columns(self, relations: Iterable[str]) -> str:
        """Return one query that reads each view of the information schema by itself.

        If the views were joined, the server would read them again for every row.
        """
        here = self.named_here(relations)
        return f"""WITH made AS (
  SELECT table_name, CASE WHEN RIGHT(table_type, 4) = 'VIEW' THEN 'view'
    WHEN engine = 'InnoDB' THEN 'table' ELSE CONCAT('table of the engine ', engine) END AS kind
  FROM information_schema.tables WHERE {here}
), held AS (
  SELECT table_name, column_name, CONVERT(column_type USING utf8mb4) AS column_type,
    is_nullable = 'YES' AS nullable,
    column_default IS NOT NULL OR LOCATE('auto_increment', extra) > 0 AS has_default,
    COALESCE(generation_expression, '') <> '' AS computed,
    LOCATE('auto_increment', extra) > 0 AS numbered,
    CONVERT(collation_name USING utf8mb4) AS collation,
    CONVERT(column_default USING utf8mb4) AS filled
  FROM information_schema.columns WHERE {here}
), alone AS (
  SELECT table_name, index_name, MAX(column_name) AS column_name
  FROM information_schema.statistics WHERE non_unique = 0 AND {here}
  GROUP BY table_name, index_name HAVING COUNT(*) = 1 AND MAX(sub_part) IS NULL
), used AS (
  SELECT table_name, column_name, MAX(CONVERT(constraint_name USING utf8mb4)) AS foreign_key
  FROM information_schema.key_column_usage WHERE referenced_table_name IS NOT NULL AND {here}
  GROUP BY table_name, column_name
)
SELECT CONVERT(table_name USING utf8mb4), CONVERT(kind USING utf8mb4),
  CONVERT(column_name USING utf8mb4), column_type, nullable, has_default, computed,
  (table_name, column_name) IN (SELECT table_name, column_name FROM alone), numbered, collation,
  foreign_key, filled
FROM made JOIN held USING (table_name) LEFT JOIN used USING (table_name, column_name)"""

    def check_column(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        kind = found.type.lower()
        if is_unlimited_text(column):
            return self._check_text(column, found, kind)
        if (size := characters(column)) is not None:
            return self._check_name(column, found, kind, size)
        if not self._fits(column, kind):
            return Fault(found.type, self.column_type(column.type), Mend((self._modify(column),)))
        return None

    def _check_text(self, column: Column[Any], found: FoundColumn, kind: str) -> Fault | None:
        collation = found.collation or ""
        if kind == "longtext" and collation.startswith("utf8mb4_"):
            return None
        # Every utf8mb3 text is a utf8mb4 text; what other character sets hold is not known.
        unicode = collation.startswith(("utf8mb4_", "utf8mb3_", "utf8_"))
        widens = unicode and (kind == "longtext" or bool(_TEXTS.fullmatch(kind)))
        mend = Mend((self._modify(column),), widens=widens)
        return Fault(f"{found.type} {collation}".strip(), self.column_type(column.type), mend)

    def _check_name(
        self, column: Column[Any], found: FoundColumn, kind: str, size: int
    ) -> Fault | None:
        varying = _VARYING.fullmatch(kind)
        wide = bool(varying and int(varying[1]) >= size)
        if wide and found.collation in _EXACT:
            return None
        table = self.named(column.table.name)
        convert = f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE {self.collation}"
        alter = (convert,) if wide else (convert, self._modify(column))
        before: tuple[str, ...] = ()
        after: tuple[str, ...] = ()
        if found.foreign_key:
            key = self._quoted(found.foreign_key)
            before = (f"ALTER TABLE {table} DROP FOREIGN KEY {key}",)
            after = tuple(self._add_foreign_key(each) for each in foreign_keys(column))
        return Fault(
            f"{found.type} {found.collation or ''}, in which different texts are equal"
            if wide
            else f"{found.type} {found.collation or ''}".strip(),
            self.column_type(column.type),
            Mend(alter, before, after),
        )

    def check_order(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        if not is_time(column) or "_timestamp" in (found.default or "").lower():
            return None
        table, name = self.named(column.table.name), self._quoted(column.name)
        digits = found.type.lower().removeprefix("datetime").removeprefix("timestamp")
        now = f"{found.type} NOT NULL DEFAULT CURRENT_TIMESTAMP{digits}"
        return Fault(
            f"{found.type} whose default is not the current time",
            now,
            Mend(
                (
                    # Rows without a time are read first, and stay so.
                    f"UPDATE {table} SET {name} = '1970-01-02' WHERE {name} IS NULL",
                    f"ALTER TABLE {table} MODIFY {name} {now}",
                )
            ),
        )

    def drop_not_null(self, column: Column[Any], found: FoundColumn) -> Mend:
        return Mend((self._modify(column),))

    def follow_ids(self, tables: Iterable[Table], messages: Table, found: FoundColumn) -> None:
        """Give the columns that hold ids the type of ``found``, sign included.

        MySQL requires the same type on both sides of a foreign key.
        """
        unsigned = "unsigned" in found.type.lower()
        if not unsigned:
            super().follow_ids(tables, messages, found)
            return
        from sqlalchemy.dialects.mysql import BIGINT, INTEGER

        big = found.type.lower().startswith("bigint")
        for table in tables:
            for column in table.columns:
                if holds_item_id(column, messages):
                    kind: TypeEngine[Any] = BIGINT(unsigned=True) if big else INTEGER(unsigned=True)
                    column.type = kind

    def _fits(self, column: Column[Any], kind: str) -> bool:
        if is_integer(column):
            whole = kind.startswith(("bigint", "int"))
            return whole and (kind.startswith("bigint") or not isinstance(column.type, BigInteger))
        if is_exact_time(column):
            return kind == "datetime(6)"
        return not is_time(column) or kind.startswith(("datetime", "timestamp"))

    def _modify(self, column: Column[Any]) -> str:
        table = self.named(column.table.name)
        definition = self.column_definition(column).partition(" REFERENCES ")[0]
        if column.autoincrement is True and "AUTO_INCREMENT" not in definition:
            definition += " AUTO_INCREMENT"
        return f"ALTER TABLE {table} MODIFY {definition}"

    def _quoted(self, name: str) -> str:
        return self.engine.dialect.identifier_preparer.quote(name)
