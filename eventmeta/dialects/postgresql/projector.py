"""Projections on PostgreSQL, where DDL is part of the transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Table,
    column,
    func,
    literal_column,
    text,
)

from eventmeta.dialects.postgresql.fast_path import in_text, namespace
from eventmeta.dialects.projector import ProjectorSQL, Swap
from eventmeta.dialects.statement import Program
from eventmeta.tables.tables import Tables
from projections.types import UtcDateTime

_PATIENCE = "500ms"
"""The time that a swap waits for readers before it tries again; later readers queue behind it.

It is well below ``deadlock_timeout``. So a transaction of the app's that has read the table, and
appends while the swap waits for its end, can go on; it is not chosen as the victim of a deadlock.
"""


class PostgreSQLProjecting(ProjectorSQL):
    """The SQL of PostgreSQL for the projector."""

    exports_at_once: ClassVar[int] = 2

    def now_ms(self) -> ColumnElement[int]:
        seconds = "extract(epoch FROM clock_timestamp())"
        return literal_column(f"CAST(floor({seconds} * 1000) AS bigint)", BigInteger())

    def oldest_append(self, tables: Tables) -> Executable | None:
        """Return a query for the lowest announced bound, and the age of its transaction."""
        query = text(
            "SELECT (classid::bigint & 65535) << 32 | objid::bigint, "
            "CAST(extract(epoch FROM clock_timestamp() - xact_start) * 1000 AS bigint) "
            "FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND objsubid = 1 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND classid::bigint >> 16 = ({namespace(tables.events.name, self.quoted)}) "
            "ORDER BY 1 LIMIT 1"
        )
        return query.columns(column("position", BigInteger), column("milliseconds", BigInteger))

    def plain(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        if isinstance(column.type, UtcDateTime):
            return func.timezone("UTC", column)
        return super().plain(column)

    def analyze(self, table: Table) -> Sequence[str]:
        """Return ANALYZE; without it, the planner takes a new or quickly grown table for small."""
        return (f"ANALYZE {self.quoted(table.name)}",)

    def block_appends(self, tables: Tables) -> Sequence[str]:
        """Lock the heads, with which every append begins, so that none is in progress."""
        return (
            f"SET LOCAL lock_timeout = '{_PATIENCE}'",
            f"LOCK TABLE {self.quoted(tables.streams.name)} IN SHARE ROW EXCLUSIVE MODE",
        )

    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """Rename the tables with their indexes; keep their owners and the privileges of others."""
        return [statement for each in swaps for statement in self._rename(each)]

    def _rename(self, swap: Swap) -> Sequence[str]:
        live, shadow = self.quoted(swap.live.name), self.quoted(swap.shadow.name)
        indexes = [
            f'ALTER INDEX {self.quoted(_shadow_index(str(index.name)))} RENAME TO "{index.name}"'
            for index in swap.live.indexes
        ]
        return (
            f"SET LOCAL lock_timeout = '{_PATIENCE}'",
            f"LOCK TABLE {live} IN ACCESS EXCLUSIVE MODE",
            _own_alike(live, shadow),
            f"DROP TABLE {live}",
            f'ALTER TABLE {shadow} RENAME TO "{swap.live.name}"',
            *indexes,
        )

    def shadow_indexes(self, live: Table) -> Program[dict[str, str]]:
        """Return other names for the indexes, until they are renamed with the table."""
        yield from ()
        return {str(index.name): _shadow_index(str(index.name)) for index in live.indexes}


def _shadow_index(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"building_{digest}_{name}"[:63]


def _own_alike(live: str, shadow: str) -> str:
    """Return DDL that copies the owner, and the privileges for the table and its columns."""
    old, new = in_text(live), in_text(shadow)
    renamed = shadow.replace("%", "%%").replace("'", "''")
    return f"""DO $do$ DECLARE found record; BEGIN
EXECUTE format('ALTER TABLE {renamed} OWNER TO %I', (
  SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = {old}::regclass));
FOR found IN SELECT privilege_type, is_grantable, columns,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS who
  FROM (
    SELECT relacl AS acl, '' AS columns FROM pg_class WHERE oid = {old}::regclass
    UNION ALL SELECT old.attacl, format(' (%I)', attname) FROM pg_attribute AS old
    JOIN pg_attribute AS new USING (attname)
    WHERE old.attrelid = {old}::regclass AND new.attrelid = {new}::regclass
  ) AS granted, aclexplode(acl)
  WHERE grantee <> (SELECT relowner FROM pg_class WHERE oid = {old}::regclass)
LOOP
  EXECUTE format('GRANT %s%s ON {renamed} TO %s%s', found.privilege_type, found.columns, found.who,
    CASE WHEN found.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
END LOOP; END $do$"""
