"""Columns of SQLite, each of which holds any value, but may convert it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Column
from sqlalchemy.schema import CreateTable

from eventmeta.dialects.columns import (
    Fault,
    FoundColumn,
    Mend,
    characters,
    is_integer,
    is_time,
    is_unlimited_text,
)
from eventmeta.dialects.ddl import DDL
from eventmeta.dialects.statement import Row


class SQLiteColumns(DDL):
    """The columns of SQLite."""

    branches_table = "message_structure"

    def describe_columns(self, relations: Iterable[str]) -> str:
        """Return the query with the SQL of each table, the only source of some facts."""
        names = ", ".join(f"'{name.lower()}'" for name in relations)
        return f"""SELECT made.name, made.type, "column".name, "column".type,
  "column"."notnull" = 0, "column".dflt_value IS NOT NULL, "column".hidden IN (2, 3),
  "column".name IN ('id', 'session_id') AND EXISTS (
    SELECT 1 FROM pragma_index_list(made.name) AS "index" WHERE "index"."unique"
    AND NOT "index".partial AND "column".name = (
      SELECT group_concat(name) FROM pragma_index_info("index".name)
    )
  ), "column".pk, made.sql, (SELECT count(*) FROM pragma_table_info(made.name) WHERE pk > 0),
  EXISTS (SELECT 1 FROM pragma_index_list(made.name) WHERE origin = 'pk')
FROM sqlite_master AS made JOIN pragma_table_xinfo(made.name) AS "column"
WHERE made.type IN ('table', 'view') AND lower(made.name) IN ({names})
UNION ALL SELECT "table", 'branches', '', '', 0, 0, 0, 0, 0, '', 0, 0
FROM pragma_foreign_key_list('{self.branches_table}') WHERE lower("from") = 'message_id'"""

    def found_columns(self, rows: Sequence[Row]) -> list[FoundColumn]:
        return [_found(*row) for row in rows]

    def check_column(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        affinity = _affinity(found.type)
        if is_integer(column):
            fits = affinity not in ("TEXT", "REAL")
        elif is_time(column):
            # Texts stay texts, except in a strict table, which refuses them.
            fits = affinity in ("TEXT", "BLOB", "NUMERIC")
        else:
            is_text = is_unlimited_text(column) or characters(column) is not None
            fits = not is_text or affinity in ("TEXT", "BLOB")
        if fits and not found.collation:
            return None
        is_ = f"{found.type} {found.collation or ''}".strip()
        needed = "INTEGER" if is_integer(column) else "TEXT"
        return Fault(is_, needed, self._rebuild(column))

    def drop_not_null(self, column: Column[Any], found: FoundColumn) -> Mend:
        return self._rebuild(column)

    def _rebuild(self, column: Column[Any]) -> Mend:
        """Return SQL that moves the rows to a new table, because SQLite changes no column."""
        table = column.table
        quote = self.engine.dialect.identifier_preparer.quote
        name, new = quote(table.name), quote(f"{table.name}_mended")
        nullable = [each for each in table.columns if each.nullable]
        columns = ", ".join(quote(each.name) for each in table.columns if each not in nullable)
        create = self.ddl(CreateTable(table)).replace(f"CREATE TABLE {name}", f"CREATE TABLE {new}")
        return Mend(
            (
                create,
                f"INSERT INTO {new} ({columns}) SELECT {columns} FROM {name}",
                f"DROP TABLE {name}",
                f"ALTER TABLE {new} RENAME TO {name}",
            ),
            before=("PRAGMA foreign_keys = OFF",),
        )


def _found(
    relation: str,
    kind: str,
    name: str,
    declared: str,
    nullable: int,
    has_default: int,
    computed: int,
    unique: int,
    key: int,
    sql: str,
    keys: int,
    key_is_index: int,
) -> FoundColumn:
    words = " ".join((sql or "").upper().split())
    if words.startswith("CREATE VIRTUAL"):
        kind = "virtual table"
    alone = key == 1 and keys == 1
    # The row id needs no index, unlike the key of a table WITHOUT ROWID, or one that is DESC.
    numbered = alone and declared.upper() == "INTEGER" and not key_is_index
    quoted = re.escape(name.upper())
    collated = re.search(rf'[("`\[, ]{quoted}["`\]]?\s[^,]*?COLLATE "?(NOCASE|RTRIM)', words)
    return FoundColumn(
        relation,
        kind,
        name,
        declared,
        bool(nullable),
        bool(has_default) or numbered,
        bool(computed),
        bool(unique) or alone,
        numbered,
        f"COLLATE {collated[1]}" if collated else None,
        None,
        None,
    )


def _affinity(declared: str) -> str:
    """Return the affinity of a declared type, by the rules of SQLite in their order."""
    kind = declared.upper()
    if "INT" in kind:
        return "INTEGER"
    if any(part in kind for part in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in kind or kind in ("", "ANY"):
        return "BLOB"
    if any(part in kind for part in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"
