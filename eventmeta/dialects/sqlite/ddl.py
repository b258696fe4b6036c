"""DDL on SQLite: triggers, and a row id for the position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import (
    Constraint,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    UniqueConstraint,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.ddl import DDL, Part
from eventmeta.dialects.sqlite.projector import REBUILT
from eventmeta.tables.tables import Tables


class SQLiteSchema(DDL):
    """The DDL of SQLite."""

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """Return the keys; ``position`` is the row id.

        So AUTOINCREMENT draws it, and the feed is in the order of storage.
        """
        return (
            PrimaryKeyConstraint("position"),
            UniqueConstraint("stream_id", "stream_type", "version", name=f"uq_{table}_version"),
            UniqueConstraint(*self.event_id_key, name=f"uq_{table}_event_id"),
        )

    def list_parts(self, relations: Iterable[str]) -> str:
        """Return the query without foreign keys: SQLite adds a foreign key only with its column."""
        names = ", ".join(f"'{name.lower()}'" for name in relations)
        size = len(REBUILT)
        return f"""SELECT type AS kind, name AS relation, '' AS name FROM sqlite_master
WHERE type IN ('table', 'view') AND lower(name) IN ({names})
UNION ALL SELECT 'column', found.name, "column".name
FROM (SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) IN ({names})) AS found
JOIN pragma_table_info(found.name) AS "column"
UNION ALL SELECT type, tbl_name, CASE WHEN type = 'index' AND substr(name, -{size}) = '{REBUILT}'
  THEN substr(name, 1, length(name) - {size}) ELSE name END FROM sqlite_master
WHERE type IN ('index', 'trigger') AND lower(tbl_name) IN ({names})"""

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """Keep other processes out. BEGIN IMMEDIATE has done it."""

    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """Return nothing: SQLite adds no foreign key to a column that exists."""
        return ()

    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Return a trigger for each way to change the log.

        ``INSERT OR REPLACE`` deletes without firing a delete trigger.
        """
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
        refusals = {
            Part("trigger", name, f"{name}_{trigger}"): (
                f'CREATE TRIGGER IF NOT EXISTS "{name}_{trigger}" BEFORE {attack} '
                f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END",
            )
            for trigger, attack in (
                ("no_update", f"UPDATE ON {log}"),
                ("no_delete", f"DELETE ON {log}"),
                ("no_replace", f"INSERT ON {log} WHEN {taken}"),
            )
        }
        return {**refusals, **_cascades(tables), **self._branch_index(tables)}

    def _branch_index(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Return an index of upstream's table of branches, if it exists, for look-ups by item."""
        if tables.messages.name not in self.branched:
            return {}
        table = self.branches_table
        index = f"idx_{table}_message_id"
        statement = f'CREATE INDEX IF NOT EXISTS "{index}" ON "{table}" (message_id)'
        return {Part("index", table, index): (statement,)}

    def create_view(self, name: str, definition: str) -> str:
        return f'CREATE VIEW IF NOT EXISTS "{name}" AS {definition}'


def _cascades(tables: Tables) -> Mapping[Part, Sequence[str]]:
    """Return a trigger for each table of items that deletes rows with their items.

    Foreign keys would do that, but other writers may not turn them on.
    """
    messages = tables.messages.name
    kept = [projection.table.name for projection in tables.item_projections]
    return {
        Part("trigger", messages, f"{name}_cascade"): (
            f'CREATE TRIGGER IF NOT EXISTS "{name}_cascade" AFTER DELETE ON "{messages}" '
            f'BEGIN DELETE FROM "{name}" WHERE id = OLD.id; END',
        )
        for name in kept
    }
