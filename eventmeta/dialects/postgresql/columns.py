"""Columns of PostgreSQL, whose types have exact names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Column

from eventmeta.dialects.columns import (
    Fault,
    FoundColumn,
    Mend,
    characters,
    is_exact_time,
    is_integer,
    is_time,
    is_unlimited_text,
)
from eventmeta.dialects.ddl import foreign_keys
from eventmeta.dialects.postgresql.ddl import PostgreSQLSchema
from eventmeta.dialects.postgresql.fast_path import in_text

_VARYING = re.compile(r"character varying\((\d+)\)")
_TIME = re.compile(r"timestamp(\(\d\))? without time zone")


class PostgreSQLColumns(PostgreSQLSchema):
    """The columns of PostgreSQL."""

    def describe_columns(self, relations: Iterable[str]) -> str:
        names = ", ".join(f"'{name}'" for name in relations)
        return f"""WITH wanted AS MATERIALIZED (
  SELECT relation, to_regclass({self.within_schema}quote_ident(relation)) AS oid
  FROM unnest(ARRAY[{names}]::text[]) AS relation
)
SELECT relation, CASE WHEN relkind IN ('r', 'p') THEN 'table' WHEN relkind IN ('v', 'm') THEN 'view'
  ELSE 'foreign table' END, attname::text,
  replace(format_type(atttypid, atttypmod), '"', ''), NOT attnotnull,
  atthasdef OR attidentity <> '', attgenerated <> '', EXISTS (
    SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND indpred IS NULL
    AND indnkeyatts = 1 AND indkey[0] = attnum
  ), CASE WHEN attname = 'id' AND attidentity <> 'a' THEN
    pg_get_serial_sequence(wanted.oid::regclass::text, attname::text) IS NOT NULL ELSE false END,
  CASE WHEN NOT collisdeterministic THEN collname::text END, (
    SELECT min(conname::text) FROM pg_constraint
    WHERE conrelid = attrelid AND contype = 'f' AND conkey = ARRAY[attnum]
  ), CASE WHEN attname = 'id' THEN (
    SELECT format('%s CACHE %s INCREMENT BY %s', seqrelid::regclass, seqcache, seqincrement)
    FROM pg_sequence WHERE (seqcache > 1 OR seqincrement < 0) AND seqrelid
      = to_regclass(pg_get_serial_sequence(wanted.oid::regclass::text, attname::text))
  ) END
FROM wanted JOIN pg_class ON pg_class.oid = wanted.oid
JOIN pg_attribute ON attrelid = wanted.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_collation ON pg_collation.oid = attcollation"""

    def check_column(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        if found.collation:
            needed = self._needed(column)
            mend = self._retyped(column, found, f'TYPE {needed} COLLATE "C"')
            return Fault(f"of the collation {found.collation}", "exact", mend)
        if self._fits(column, found.type):
            return None
        needed = self._needed(column)
        widens = bool(_VARYING.fullmatch(found.type))
        using = "" if widens else f" USING {self._quoted(column.name)}::{needed}"
        if is_time(column) and not is_exact_time(column):
            using = f" USING {self._quoted(column.name)} AT TIME ZONE 'UTC'"
        if widens:
            mend = Mend((self._alter(column, f"TYPE {needed}"),), widens=True)
        else:
            mend = self._retyped(column, found, f"TYPE {needed}{using}")
        return Fault(found.type, needed, mend)

    def _retyped(self, column: Column[Any], found: FoundColumn, how: str) -> Mend:
        """Return the change of type. It drops the foreign key meanwhile: both sides must fit."""
        alter = (self._alter(column, how),)
        if not found.foreign_key:
            return Mend(alter)
        table, key = self.named(column.table.name), self._quoted(found.foreign_key)
        return Mend(
            alter,
            before=(f"ALTER TABLE {table} DROP CONSTRAINT {key}",),
            after=tuple(self._add_foreign_key(each) for each in foreign_keys(column)),
        )

    def check_order(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        table, name = self.named(column.table.name), self._quoted(column.name)
        if is_time(column):
            if not found.nullable:
                return None
            # Rows without a time are read last.
            fill = f"UPDATE {table} SET {name} = timezone('UTC', now()) WHERE {name} IS NULL"
            mend = Mend((fill, self._alter(column, "SET NOT NULL")))
            return Fault("nullable", "NOT NULL", mend)
        if found.default is None:
            return None
        sequence = found.default.partition(" CACHE ")[0]
        ascend = (
            f"ALTER SEQUENCE {sequence} INCREMENT BY 1 CACHE 1 NO MINVALUE NO MAXVALUE "
            "START WITH 1 RESTART WITH 1"
        )
        last = f"greatest(max({name}), 1), max({name}) > 0"
        go_on = f"SELECT setval({in_text(sequence)}, {last}) FROM {table}"
        return Fault(
            f"numbered by the sequence {found.default}",
            "numbered in the order of the adds, by CACHE 1 and an INCREMENT above 0",
            Mend((ascend, go_on)),
        )

    def drop_not_null(self, column: Column[Any], found: FoundColumn) -> Mend:
        return Mend((self._alter(column, "DROP NOT NULL"),))

    def _fits(self, column: Column[Any], kind: str) -> bool:
        varying = _VARYING.fullmatch(kind)
        if is_unlimited_text(column):
            return kind in ("text", "character varying")
        if (size := characters(column)) is not None:
            if self._needed(column) == "UUID":
                return kind == "uuid"
            return kind in ("text", "character varying") or bool(
                varying and int(varying[1]) >= size
            )
        if is_integer(column):
            return kind == "bigint" or (kind == "integer" and not _is_big(column))
        if is_exact_time(column):
            return kind == "timestamp with time zone"
        return not is_time(column) or bool(_TIME.fullmatch(kind))

    def _needed(self, column: Column[Any]) -> str:
        return column.type.compile(self.engine.dialect)

    def _alter(self, column: Column[Any], what: str) -> str:
        table, name = self.named(column.table.name), self._quoted(column.name)
        return f"ALTER TABLE {table} ALTER COLUMN {name} {what}"

    def _quoted(self, name: str) -> str:
        return self.engine.dialect.identifier_preparer.quote(name)


def _is_big(column: Column[Any]) -> bool:
    return isinstance(column.type, BigInteger)
