"""Creating what is missing in a database, and leaving the rest as it is."""

from __future__ import annotations

from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.dialects import Dialect
from eventmeta.tables import Tables


async def create_tables(engine: AsyncEngine, dialect: Dialect, tables: Tables) -> None:
    """Create missing tables, indexes, triggers and the view of metadata changes.

    Safe beside other processes that do the same. Existing tables, upstream's included, are not
    altered, and no row is touched.
    """
    async with engine.connect() as connection:
        if await connection.run_sync(_is_complete, tables):
            return
    async with engine.begin() as connection:
        await dialect.begin_schema_change(connection)
        try:
            dialect.prepare_tables(tables)
            await connection.run_sync(tables.metadata.create_all)
            view = dialect.literal(dialect.relation(tables.events).select_changes())
            view = dialect.create_view(tables.names.metadata_changes, view)
            for statement in (*dialect.guards(tables), view):
                await connection.exec_driver_sql(statement)
        finally:
            for statement in dialect.finish_schema_change():
                await connection.exec_driver_sql(statement)


def _is_complete(connection: Connection, tables: Tables) -> bool:
    """Whether all is there. The view is made last, and DDL takes locks and rights."""
    known = inspect(connection)
    names = [*tables.metadata.tables, tables.names.metadata_changes]
    return all(known.has_table(name) for name in names)
