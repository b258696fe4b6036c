"""What of the store exists in a database, and whether it can be used as it is."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Column

from eventmeta.core.database_errors import SettingsConflict
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.columns import FoundColumn
from eventmeta.dialects.ddl import Part
from eventmeta.dialects.statement import Row
from eventmeta.tables.names import TableNames, names_beside
from eventmeta.tables.tables import Tables

logger = logging.getLogger("eventmeta")

SCHEMA_VERSION = 1
"""Of the tables as this version of the library wants them. It rises when they change."""

VERSION = "schema_version"
STRUCTURED = "structured_metadata"

Fetch = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[Row]]]]
"""Runs some queries, and gives the rows of each."""


@dataclass(frozen=True)
class Existing:
    """What there is in a database of the tables of a store.

    Attributes:
        parts: Tables, columns, indexes, foreign keys, triggers and views.
        columns: The columns of each table, by the name of the table in lower case.
        settings: What the database says of itself.
        branched: The tables of items, in lower case, of which a table of upstream's tells the
            branches.
    """

    parts: frozenset[Part] = frozenset()
    columns: Mapping[str, Mapping[str, FoundColumn]] = field(
        default_factory=dict[str, Mapping[str, FoundColumn]]
    )
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    branched: frozenset[str] = frozenset()

    def has(self, table: str) -> bool:
        """Return whether there is a table, or a view, called ``table``."""
        return table.lower() in self.columns

    def column(self, column: Column[object]) -> FoundColumn | None:
        """Return what ``column`` is in the database, if it is there."""
        return self.columns.get(column.table.name.lower(), {}).get(column.name.lower())

    @property
    def version(self) -> int:
        """The version of the schema; 0 before there were versions."""
        return int(self.settings.get(VERSION, "0"))

    def is_structured(self, names: TableNames) -> bool | None:
        """Return whether structured tables are kept; None if that is still open."""
        if STRUCTURED in self.settings:
            return self.settings[STRUCTURED] == "true"
        if not self.has(names.events_table):
            return None
        tables = (names.conversation_table, names.tool_calls_table, names.usage_table)
        return any(map(self.has, tables))


def folded(part: Part) -> Part:
    """Return ``part`` in lower case: most databases do not tell names apart by it."""
    return Part(part.kind, part.relation.lower(), part.name.lower())


async def look(dialect: Dialect, tables: Tables, fetch: Fetch, *, parts: str = "") -> Existing:
    """Find out what exists, by a query of the catalog, and one of the settings if there are any.

    Args:
        dialect: The database.
        tables: The tables of the store.
        fetch: How to run the queries.
        parts: A query for the parts of the schema, if they are wanted.
    """
    names = tables.names
    relations = [
        *tables.metadata.tables,
        *(names.conversation_table, names.tool_calls_table, names.usage_table),
        TableNames().events_table,
    ]
    query = dialect.describe_columns(dict.fromkeys(relations))
    described, *listed = await fetch([query, parts] if parts else [query])
    columns: dict[str, dict[str, FoundColumn]] = {}
    branched: set[str] = set()
    for found in dialect.found_columns(described):
        if found.kind == "branches":
            branched.add(found.relation.lower())
        else:
            columns.setdefault(found.relation.lower(), {})[found.name.lower()] = found
    settings: Mapping[str, str] = {}
    if tables.settings.name.lower() in columns:
        quoted = dialect.named(tables.settings.name)
        (rows,) = await fetch([f"SELECT name, value FROM {quoted}"])
        settings = {str(name): str(value) for name, value in rows}
    found_parts = frozenset(folded(Part(*row)) for rows in listed for row in rows)
    existing = Existing(found_parts, columns, settings, frozenset(branched))
    _learn(dialect, tables, existing)
    if tables.messages.name.lower() in branched:
        await _tell_of_branches(dialect, fetch)
    return existing


async def _tell_of_branches(dialect: Dialect, fetch: Fetch) -> None:
    table = dialect.branches_table
    (rows,) = await fetch([f"SELECT EXISTS (SELECT 1 FROM {table} WHERE branch_id <> 'main')"])
    if rows[0][0]:
        logger.warning(
            "this database has conversations with branches, in %s: only the items of the branch "
            "'main' are read; clear_session() removes those of all branches",
            table,
        )


def _learn(dialect: Dialect, tables: Tables, existing: Existing) -> None:
    """Let definitions and statements follow what only the database can tell."""
    messages = tables.messages
    if found := existing.column(messages.c.id):
        dialect.follow_ids(tables.metadata.sorted_tables, messages, found)
    if messages.name.lower() in existing.branched:
        dialect.branched.add(messages.name)


class StructuredTablesKept(SettingsConflict):
    """The database keeps structured tables, and the store was not told whether to."""


def check_settings(names: TableNames, existing: Existing, *, turn_on: bool = False) -> None:
    """Refuse options that contradict what the database is.

    Args:
        names: The options.
        existing: What the database is.
        turn_on: Structured tables are to be kept from now on.
    """
    if existing.version > SCHEMA_VERSION:
        raise SettingsConflict(
            f"the schema is of version {existing.version}, and this store knows only up to "
            f"{SCHEMA_VERSION}: update eventmeta"
        )
    _check_pair(names, existing)
    structured = existing.is_structured(names)
    if structured and not names.structured_metadata:
        refusal = StructuredTablesKept if names.structured_metadata is None else SettingsConflict
        raise refusal(
            "this database keeps the tables of conversations, tool calls and tokens, and the "
            "store was opened without: open it with structured_metadata=True"
        )
    if structured is False and names.structured_metadata and not turn_on:
        raise SettingsConflict(
            "this database does not keep the tables of conversations, tool calls and tokens, and "
            "the store was opened with structured_metadata=True: open it without, or stop all "
            "processes that write, call `await "
            "store.create_tables(turn_on_structured_metadata=True)` once, then "
            "`await backfill_conversations(store)`, and start them with structured_metadata=True"
        )


def _check_pair(names: TableNames, existing: Existing) -> None:
    """Refuse to begin a new history for sessions whose history is in the tables of default names.

    That is so where the sessions have owners already, which only a store gives them.
    """
    default = TableNames()
    beside = names_beside(names.sessions_table, names.messages_table)
    begun = existing.has(names.events_table) or existing.has(names.settings_table)
    owners = existing.columns.get(names.sessions_table.lower(), {}).get("user_id")
    if (
        names.events_table == default.events_table
        or names.events_table != beside["events_table"]
        or begun
        or owners is None
        or not existing.has(default.events_table)
    ):
        return
    options = ", ".join(f'{option}="{getattr(default, option)}"' for option in beside)
    raise SettingsConflict(
        f"the history of {names.sessions_table} may be in {default.events_table}, and the store "
        f"was opened with {names.events_table}, which does not exist: if it is, name the tables, "
        f"{options}; if not, give events_table= a name of its own"
    )
