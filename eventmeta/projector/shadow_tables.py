"""Shadow tables: the tables that replace a projection's tables once they are complete."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Index, MetaData, Table
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.elements import quoted_name

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.projector import Swap
from eventmeta.dialects.statement import Program, Query, Statement
from eventmeta.tables.names import RESERVED_ENDINGS

_BUILDING, _RETIRED = RESERVED_ENDINGS


@dataclass(frozen=True)
class ShadowTables:
    """The shadow tables of some live tables, in the same order.

    Attributes:
        live: The live tables.
        tables: The shadow tables.
        dialect: The dialect of their database.
        is_scratch: Whether they are scratch tables, which replace no live tables.
    """

    live: tuple[Table, ...]
    tables: tuple[Table, ...]
    dialect: Dialect
    is_scratch: bool = False

    @classmethod
    def of(cls, live: Sequence[Table], dialect: Dialect, suffix: str = _BUILDING) -> ShadowTables:
        """Return shadow tables like ``live``, with ``suffix`` after their names."""
        metadata = MetaData()
        made = [table.to_metadata(metadata, name=f"{table.name}{suffix}") for table in live]
        for constraint in (each for table in made for each in table.constraints):
            constraint.name = None  # the constraint of the live table has this name
        dialect.prepare_tables(made)
        return cls(tuple(live), tuple(made), dialect, is_scratch=suffix != _BUILDING)

    @property
    def swaps(self) -> list[Swap]:
        """Return which shadow table replaces which live table."""
        pairs = zip(self.live, self.tables, strict=True)
        return [Swap(live, shadow, f"{live.name}{_RETIRED}") for live, shadow in pairs]

    def exist(self) -> Program[tuple[bool, bool]]:
        """Return whether there are shadow tables, and whether there are retired tables."""
        swaps = self.swaps
        names = [name for each in swaps for name in (each.shadow.name, each.retired)]
        rows = yield Statement(self.dialect.list_parts(names), ())()
        found = {relation.lower() for kind, relation, _ in rows if kind == "table"}
        return (
            any(each.shadow.name.lower() in found for each in swaps),
            any(each.retired.lower() in found for each in swaps),
        )

    def create(self) -> Program[None]:
        """Create the missing shadow tables, with their indexes if the dialect makes those first."""
        for table in self.tables:
            yield self._ddl(CreateTable(table, if_not_exists=True))
        if self.dialect.indexes_first:
            yield from self._index()

    def finish(self) -> Program[None]:
        """Create the missing indexes, now that the rows are there, and analyze the tables."""
        if not self.dialect.indexes_first:
            yield from self._index()
        for table in self.tables:
            yield from analyze(self.dialect, table)

    def drop(self) -> Program[None]:
        """Drop the shadow tables."""
        yield from self._drop([table.name for table in self.tables])

    def drop_retired(self) -> Program[None]:
        """Drop the retired tables, which the shadow tables have replaced."""
        yield from self._drop([each.retired for each in self.swaps])

    def _index(self) -> Program[None]:
        for live, shadow in zip(self.live, self.tables, strict=True):
            rows = yield Statement(self.dialect.list_parts([shadow.name]), ())()
            present = {name.lower() for kind, _, name in rows if kind == "index"}
            if self.is_scratch:
                names = {
                    str(each.name): _scratch_name(shadow.name, str(each.name))
                    for each in live.indexes
                }
            else:
                names = yield from self.dialect.shadow_indexes(live)
            for like, index in zip(_in_order(live), _in_order(shadow), strict=True):
                plain = str(like.name)
                if present.isdisjoint({plain.lower(), names[plain].lower()}):
                    yield self._create_index(index, names[plain])

    def _create_index(self, index: Index, name: str) -> Query:
        """Return the statement that creates ``index`` under ``name``.

        The index object keeps its own name, because indexes are matched in the order of names.
        """
        own, index.name = index.name, quoted_name(name, quote=None)
        try:
            return self._ddl(CreateIndex(index))
        finally:
            index.name = own

    def _ddl(self, element: CreateTable | CreateIndex) -> Query:
        return Statement(self.dialect.ddl(element), ())()

    def _drop(self, names: Sequence[str]) -> Program[None]:
        rows = yield Statement(self.dialect.list_parts(names), ())()
        present = {relation.lower() for kind, relation, _ in rows if kind == "table"}
        for name in names:
            if name.lower() in present:
                yield Statement(f"DROP TABLE {self.dialect.named(name)}", ())()


def analyze(dialect: Dialect, table: Table) -> Program[None]:
    """Analyze ``table``, so that the planner knows how large it is."""
    for statement in dialect.analyze(table):
        yield Statement(statement, ())()


def _scratch_name(table: str, index: str) -> str:
    """Return a unique name for an index: in some databases all tables share one set of names."""
    digest = hashlib.sha256(f"{table}.{index}".encode()).hexdigest()[:16]
    return f"scratch_{digest}_{index}"[:63]


def _in_order(table: Table) -> list[Index]:
    """Return the indexes in the order of their columns, then of their names.

    Columns come first because some names contain the table's name.
    """

    def key(index: Index) -> tuple[list[str], str]:
        return [column.name for column in index.columns], str(index.name)

    return sorted(table.indexes, key=key)
