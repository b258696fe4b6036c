"""What is missing in a database, and adding it: to an empty one, upstream's, or an older one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import Table
from sqlalchemy.schema import CreateIndex, CreateTable

from eventmeta.dialects import Dialect
from eventmeta.dialects.executing import afterwards, execute
from eventmeta.dialects.schema import Part, foreign_keys
from eventmeta.dialects.statement import Row, Statement
from eventmeta.tables import VERSIONED, Tables


class SchemaChange(NamedTuple):
    """A part that is missing.

    Attributes:
        statements: The DDL that adds it.
        alone: It locks a table that may be in use, so it is a transaction of its own.
    """

    statements: tuple[str, ...]
    alone: bool


async def create_tables(dialect: Dialect, tables: Tables) -> None:
    """Add the tables, columns, foreign keys, indexes, triggers and the view that are missing.

    Safe beside other processes that do the same, and beside writers. No row is touched. It may be
    broken off anywhere, and goes on from there when it is called again. A database in which
    nothing is missing is only read, once.
    """
    await dialect.first_connection(tables)
    if not await missing_changes(dialect, tables):
        return
    done: set[SchemaChange] = set()
    while True:
        async with dialect.transaction() as connection:
            await dialect.begin_schema_change(connection)
            async with afterwards(connection, dialect.finish_schema_change()):
                rows = await connection.exec_driver_sql(_parts_query(dialect, tables))
                changes = _changes(dialect, tables, rows.fetchall())
                changes = [change for change in changes if change not in done]
                step = _next_step(changes)
                await execute(connection, _statements(step))
        done.update(step)
        if len(step) == len(changes):
            return


async def missing_changes(dialect: Dialect, tables: Tables) -> list[SchemaChange]:
    """What `create_tables` would add, in this order, found out by one query."""
    (rows,) = await dialect.read([Statement(_parts_query(dialect, tables), ())()])
    return _changes(dialect, tables, rows)


async def schema_sql(dialect: Dialect, tables: Tables) -> str:
    """The statements of `missing_changes` as a script; empty if nothing is missing.

    Each statement ends with a semicolon and the end of its line; a blank line comes between two.
    """
    await dialect.first_connection(tables)
    changes = await missing_changes(dialect, tables)
    return "\n".join(f"{statement};\n" for statement in _statements(changes))


def _parts_query(dialect: Dialect, tables: Tables) -> str:
    guarding = (part.relation for part in dialect.guards(tables))
    names = [*tables.metadata.tables, tables.names.metadata_changes_view, *guarding]
    return dialect.list_parts(dict.fromkeys(names))


def _changes(dialect: Dialect, tables: Tables, rows: Iterable[Row]) -> list[SchemaChange]:
    """What is missing where the parts in ``rows`` exist: new tables first."""
    found = {_folded(Part(*row)) for row in rows}

    def missing(kind: str, relation: str, name: str = "") -> bool:
        return _folded(Part(kind, relation, name)) not in found

    ordered = tables.metadata.sorted_tables
    dialect.prepare_tables(ordered)
    new = [table for table in ordered if missing("table", table.name)]
    changes = [
        SchemaChange((statement,), alone=False)
        for table in new
        for statement in _creation(dialect, table)
    ]
    changes += [
        SchemaChange(tuple(statements), alone=tables.events not in new)
        for part, statements in dialect.guards(tables).items()
        if missing(*part)
    ]
    changes += [
        SchemaChange(statements, alone=True)
        for table in ordered
        if table not in new and VERSIONED not in table.info
        for statements in _alteration(dialect, table, missing)
    ]
    name = tables.names.metadata_changes_view
    if missing("view", name):
        view = dialect.literal(dialect.relation(tables.events).select_changes())
        changes.append(SchemaChange((dialect.create_view(name, view),), alone=False))
    return changes


def _folded(part: Part) -> Part:
    """Most databases do not tell names apart by their case."""
    return Part(part.kind, part.relation.lower(), part.name.lower())


def _creation(dialect: Dialect, table: Table) -> Iterator[str]:
    yield dialect.ddl(CreateTable(table, if_not_exists=True))
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield dialect.ddl(CreateIndex(index))


def _alteration(
    dialect: Dialect, table: Table, missing: Callable[[str, str, str], bool]
) -> Iterator[tuple[str, ...]]:
    """A column that may not be NULL came with its table, and so did its foreign key."""
    added = [column for column in table.columns if missing("column", table.name, column.name)]
    for column in added:
        yield (dialect.add_column(column),)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        if missing("index", table.name, str(index.name)):
            yield (dialect.ddl(CreateIndex(index)),)
    for column in table.columns:
        if column.nullable and missing("foreign key", table.name, column.name):
            for key in foreign_keys(column):
                if separate := dialect.add_foreign_key(key, with_column=column in added):
                    yield tuple(separate)


def _next_step(changes: Sequence[SchemaChange]) -> list[SchemaChange]:
    """As many of ``changes`` as may be one transaction."""
    together = list(takewhile(lambda change: not change.alone, changes))
    return together or list(changes[:1])


def _statements(changes: Iterable[SchemaChange]) -> Iterator[str]:
    return (statement for change in changes for statement in change.statements)
