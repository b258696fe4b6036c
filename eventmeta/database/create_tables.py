"""Adding what a database lacks, be it empty, one of upstream's, or one of an older version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import ColumnElement, Table, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from eventmeta.database.column_faults import check_opened, find_faults, mending, unsupported
from eventmeta.database.existing import (
    SCHEMA_VERSION,
    STRUCTURED,
    VERSION,
    Existing,
    Fetch,
    check_settings,
    folded,
    look,
)
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.ddl import Part, foreign_keys
from eventmeta.dialects.executing import afterwards, execute
from eventmeta.dialects.statement import Row, Statement
from eventmeta.tables.tables import VERSIONED, Tables
from projections import AnySelect


class SchemaChange(NamedTuple):
    """A change that adds a missing part of the schema.

    Attributes:
        statements: The DDL.
        alone: The DDL locks a table that may be in use, so it runs in a transaction of its own.
    """

    statements: tuple[str, ...]
    alone: bool


async def open_tables(dialect: Dialect, tables: Tables) -> None:
    """Make the first connection, and refuse a database that cannot be used as it is."""
    await dialect.first_connection()
    check_opened(dialect, tables, await look(dialect, tables, _reading(dialect)))


async def check_tables_within(
    dialect: Dialect, tables: Tables, connection: AsyncConnection
) -> None:
    """Refuse a database that cannot be used as it is, as seen in the caller's transaction."""
    check_opened(dialect, tables, await look(dialect, tables, _on(dialect, connection)))


async def create_tables(dialect: Dialect, tables: Tables, *, turn_on: bool = False) -> None:
    """Add the tables, columns, foreign keys, indexes, triggers and the view that are missing.

    Columns that are too narrow are widened. No row is touched. Other processes may call this at the
    same time, and others may write. If the call is broken off, the next call goes on from there. If
    nothing is missing, the database is only read.

    Args:
        dialect: The database.
        tables: The tables.
        turn_on: Keep structured tables from now on, in a database that does not.
    """
    await dialect.first_connection()
    if not await missing_changes(dialect, tables, turn_on=turn_on):
        return
    done: set[SchemaChange] = set()
    while True:
        async with dialect.transaction() as connection:
            await dialect.begin_schema_change(connection)
            async with afterwards(connection, dialect.finish_schema_change()):
                parts = _parts_query(dialect, tables)
                existing = await look(dialect, tables, _on(dialect, connection), parts=parts)
                changes = _changes(dialect, tables, existing, turn_on=turn_on)
                changes = [change for change in changes if change not in done]
                step = _next_step(changes)
                await execute(connection, _statements(step))
        done.update(step)
        if len(step) == len(changes):
            return


async def missing_changes(
    dialect: Dialect, tables: Tables, *, turn_on: bool = False
) -> list[SchemaChange]:
    """Return the changes that `create_tables` would make, in their order."""
    parts = _parts_query(dialect, tables)
    existing = await look(dialect, tables, _reading(dialect), parts=parts)
    return _changes(dialect, tables, existing, turn_on=turn_on)


async def schema_sql(dialect: Dialect, tables: Tables, *, turn_on: bool = False) -> str:
    """Return the statements of `missing_changes` as a script; empty if nothing is missing.

    Each statement ends with a semicolon and a newline; a blank line separates two statements.
    """
    await dialect.first_connection()
    changes = await missing_changes(dialect, tables, turn_on=turn_on)
    return "\n".join(f"{statement};\n" for statement in _statements(changes))


def _reading(dialect: Dialect) -> Fetch:
    async def fetch(queries: Sequence[str]) -> Sequence[Sequence[Row]]:
        return await dialect.read([Statement(query, ())() for query in queries])

    return fetch


def _on(dialect: Dialect, connection: AsyncConnection) -> Fetch:
    async def fetch(queries: Sequence[str]) -> list[Sequence[Row]]:
        return [await dialect.execute_on(connection, Statement(each, ())()) for each in queries]

    return fetch


def _parts_query(dialect: Dialect, tables: Tables) -> str:
    guarding = (part.relation for part in dialect.guards(tables))
    names = [*tables.metadata.tables, tables.names.metadata_changes_view, *guarding]
    if dialect.branches_table:
        names.append(dialect.branches_table)
    return dialect.list_parts(dict.fromkeys(names))


def _changes(
    dialect: Dialect, tables: Tables, existing: Existing, *, turn_on: bool
) -> list[SchemaChange]:
    """Return the changes that are needed beside what exists.

    The settings of the database come first, then new tables and the rest. The version of the
    schema comes last, when all else is done.
    """
    check_settings(tables.names, existing, turn_on=turn_on)
    faults = list(find_faults(dialect, tables, existing))
    if refused := [each for each in faults if not each.fault.mend.widens]:
        raise unsupported(refused)
    first, last = _settings(dialect, tables, existing)
    mends = mending([each.fault.mend for each in faults])
    widening = [SchemaChange((statement,), alone=True) for statement in mends]
    parts = _missing_parts(dialect, tables, existing)
    return [*first, *widening, *parts, *last]


def _settings(
    dialect: Dialect, tables: Tables, existing: Existing
) -> tuple[list[SchemaChange], list[SchemaChange]]:
    """Return the changes of settings: those to make first, and those to make last.

    The first ones come before all other changes, so that all processes agree on them.
    """
    first: list[SchemaChange] = []
    last: list[SchemaChange] = []
    kept, wanted = existing.is_structured(tables.names), bool(tables.names.structured_metadata)
    if not existing.has(tables.settings.name):
        first += [
            SchemaChange((each,), alone=False) for each in _creation(dialect, tables.settings)
        ]
    if STRUCTURED not in existing.settings:
        now = wanted if kept is None else kept
        first.append(_setting(dialect, tables, STRUCTURED, str(now).lower()))
    if kept is False and wanted:
        last.append(_setting(dialect, tables, STRUCTURED, "true", update=True))
    if existing.version < SCHEMA_VERSION:
        last.append(_setting(dialect, tables, VERSION, str(SCHEMA_VERSION), update=True))
    return first, last


def _setting(
    dialect: Dialect, tables: Tables, name: str, value: str, *, update: bool = False
) -> SchemaChange:
    texts: list[ColumnElement[str]] = [literal_column(f"'{text}'") for text in (name, value)]
    row: AnySelect = select(*texts)
    names = ("value",) if update else ()
    statement = dialect.upsert(tables.settings, ["name", "value"], row, names)
    return SchemaChange((dialect.literal(statement),), alone=False)


def _missing_parts(dialect: Dialect, tables: Tables, existing: Existing) -> list[SchemaChange]:
    def missing(kind: str, relation: str, name: str = "") -> bool:
        return folded(Part(kind, relation, name)) not in existing.parts

    ordered = [table for table in tables.metadata.sorted_tables if table is not tables.settings]
    dialect.prepare_tables([*ordered, tables.settings])
    new = [table for table in ordered if missing("table", table.name)]
    older = {table.name for table in ordered if table not in new}
    changes = [
        SchemaChange((statement,), alone=False)
        for table in new
        for statement in _creation(dialect, table)
    ]
    changes += [
        SchemaChange(tuple(statements), alone=bool(older & {tables.events.name, part.relation}))
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


def _creation(dialect: Dialect, table: Table) -> Iterator[str]:
    yield dialect.ddl(CreateTable(table, if_not_exists=True))
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield dialect.ddl(CreateIndex(index))


def _alteration(
    dialect: Dialect, table: Table, missing: Callable[[str, str, str], bool]
) -> Iterator[tuple[str, ...]]:
    """Yield the DDL for each column, index and foreign key that an older table lacks.

    Columns that may not be NULL are skipped: they were created with the table, as were their
    foreign keys.
    """
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
    """Return the first of ``changes``, as many as may run in one transaction."""
    together = list(takewhile(lambda change: not change.alone, changes))
    return together or list(changes[:1])


def _statements(changes: Iterable[SchemaChange]) -> Iterator[str]:
    return (statement for change in changes for statement in change.statements)
