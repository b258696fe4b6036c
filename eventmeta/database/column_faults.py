"""Checks that the existing tables can hold what the store writes, and the DDL that mends them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Column, Table

from eventmeta.core.database_errors import TablesMissing, UnsupportedSchema
from eventmeta.database.existing import SCHEMA_VERSION, Existing, check_settings
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.columns import Fault, FoundColumn, Mend
from eventmeta.tables.tables import VERSIONED, Tables


class ColumnFault(NamedTuple):
    """A column that cannot be used as it is; a whole table if ``column`` is None."""

    table: str
    column: str | None
    fault: Fault


def check_opened(dialect: Dialect, tables: Tables, existing: Existing) -> None:
    """Refuse a database that the store cannot use as it is.

    Raises:
        SettingsConflict: The options of the store contradict the settings of the database.
        UnsupportedSchema: A column cannot hold exactly what the store writes.
        TablesMissing: A table or column is missing, or the schema is of an older version.
    """
    check_settings(tables.names, existing)
    if faults := list(find_faults(dialect, tables, existing)):
        raise unsupported(faults)
    for table in _own(tables):
        if not existing.has(table.name):
            raise TablesMissing(f"table {table.name} does not exist")
        for column in table.columns:
            if existing.column(column) is None:
                raise TablesMissing(f"column {column.name} of table {table.name} does not exist")
    if existing.version < SCHEMA_VERSION:
        raise TablesMissing(
            f"the schema is of version {existing.version}, and this store needs version "
            f"{SCHEMA_VERSION}"
        )


def find_faults(dialect: Dialect, tables: Tables, existing: Existing) -> Iterator[ColumnFault]:
    """Yield the faults of the tables that exist."""
    dialect.prepare_tables(tables.metadata.sorted_tables)
    for table in _own(tables):
        found = existing.columns.get(table.name.lower())
        if found is None:
            continue
        kind = next(iter(found.values())).kind
        if kind != "table":
            yield ColumnFault(table.name, None, _not_a_table(dialect, table, kind))
            continue
        for column in table.columns:
            fault = _fault(dialect, tables, column, found.get(column.name.lower()))
            if fault is not None:
                yield ColumnFault(table.name, column.name, fault)
        known = {column.name.lower() for column in table.columns}
        for name, other in found.items():
            if name not in known and not (other.nullable or other.has_default or other.computed):
                fault = Fault("NOT NULL without a default", "nullable or have a default")
                yield ColumnFault(table.name, other.name, fault)


def _not_a_table(dialect: Dialect, table: Table, kind: str) -> Fault:
    quoted = dialect.named(table.name)
    engine = kind.startswith("table of the engine")
    mend = Mend((f"ALTER TABLE {quoted} ENGINE = InnoDB",) if engine else ())
    return Fault(f"a {kind}", "a table of InnoDB" if engine else "a table", mend)


def _fault(
    dialect: Dialect, tables: Tables, column: Column[object], found: FoundColumn | None
) -> Fault | None:
    if found is None:
        if column.nullable:
            return None  # it will be added
        return Fault("missing", "there (it cannot be added to a table that has rows)")
    if found.computed:
        return Fault("computed by the database", "a column that can be written to")
    fault = dialect.check_column(column, found)
    if fault is not None:
        return fault
    if column.nullable and not found.nullable:
        return Fault("NOT NULL", "one that may be NULL", dialect.drop_not_null(column, found))
    if column is tables.messages.c.id and not found.numbered:
        return Fault(
            f"{found.type} that is not numbered by the database",
            "the primary key, for which the database draws the numbers",
        )
    if column in (tables.messages.c.id, tables.messages.c.created_at):
        fault = dialect.check_order(column, found)
        if fault is not None:
            return fault
    key = column in (tables.messages.c.id, tables.sessions.c.session_id)
    if key and not found.unique:
        return Fault("not unique", "the primary key")
    return None


def unsupported(faults: Sequence[ColumnFault]) -> UnsupportedSchema:
    """Return the error that lists all ``faults`` and the statements that mend them."""
    first = faults[0]
    told = "; ".join(
        f"{f'column {column} of ' if column else ''}table {table} is {fault.is_}, and must be "
        f"{fault.needed}"
        for table, column, fault in faults
    )
    statements = mending([fault.mend for *_, fault in faults])
    widens = all(fault.mend.widens for *_, fault in faults)
    remedy = "; ".join(statements)
    if widens:
        told += f": call `await store.create_tables()`, or run {remedy}"
    elif statements and all(fault.mend.alter for *_, fault in faults):
        told += f": stop all writers, make a backup, and run {remedy}"
    else:
        told += ": change the tables, or give the store other names for its tables"
    return UnsupportedSchema(told, first.table, first.column, statements)


def mending(mends: Sequence[Mend]) -> tuple[str, ...]:
    """Return the statements of ``mends`` in an order in which they can be run."""
    ordered = [
        *(statement for mend in mends for statement in mend.before),
        *(statement for mend in mends for statement in mend.alter),
        *(statement for mend in mends for statement in mend.after),
    ]
    return tuple(dict.fromkeys(ordered))


def _own(tables: Tables) -> list[Table]:
    """Return the store's own tables.

    An app's projections are left out: their tables are rebuilt when they change.
    """
    return [table for table in tables.metadata.sorted_tables if VERSIONED not in table.info]
