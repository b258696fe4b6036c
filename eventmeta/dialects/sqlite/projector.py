"""Projections on SQLite, where a long transaction would block the one writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sqlalchemy import ColumnElement, Integer, Table, func, literal_column

from eventmeta.dialects.projector import ProjectorSQL, Swap
from eventmeta.dialects.statement import Program, Statement
from eventmeta.tables.tables import Tables

REBUILT = "_rebuilt"
"""The ending of the index names of every other rebuild, because SQLite cannot rename an index."""


class SQLiteProjecting(ProjectorSQL):
    """The SQL of SQLite for the projector."""

    events_per_fill: ClassVar[int] = 2_000
    throttle_seconds: ClassVar[float] = 0.01
    indexes_first: ClassVar[bool] = True

    def now_ms(self) -> ColumnElement[int]:
        days = "(julianday('now') - 2440587.5)"
        return literal_column(f"CAST({days} * 86400000 AS INTEGER)", Integer())

    def size(self, column: ColumnElement[str]) -> ColumnElement[int]:
        return func.length(column)

    def block_appends(self, tables: Tables) -> Sequence[str]:
        """Block appends. BEGIN IMMEDIATE does it."""
        return ()

    def rename(self, swaps: Sequence[Swap]) -> Sequence[str]:
        """Rename in the legacy way, which does not rewrite the app's views and triggers."""
        renamed = (
            f'ALTER TABLE "{old}" RENAME TO "{new}"'
            for each in swaps
            for old, new in (
                (each.live.name, each.retired),
                (each.shadow.name, each.live.name),
            )
        )
        return (
            "PRAGMA legacy_alter_table = ON",
            *renamed,
            "PRAGMA legacy_alter_table = OFF",
        )

    def shadow_indexes(self, live: Table) -> Program[dict[str, str]]:
        """Return names that end with `REBUILT`, unless those of the live table do."""
        used = "SELECT lower(name) FROM sqlite_master WHERE type = 'index'"
        rows = yield Statement(used, ())()
        taken = {name for (name,) in rows}
        names = [str(index.name) for index in live.indexes]
        return {name: name + REBUILT if name.lower() in taken else name for name in names}
