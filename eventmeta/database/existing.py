"""The tables and settings of a store that exist in a database, and checks of the settings."""

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
"""The version of the tables that this version of the library needs. It rises when they change."""

VERSION = "schema_version"
STRUCTURED = "structured_metadata"

Fetch = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[Row]]]]
"""A function that runs some queries, and returns the rows of each."""


@dataclass(frozen=True)
class Existing:
    """The parts of a store's schema that exist in a database.

    Attributes:
        parts: Tables, columns, indexes, foreign keys, triggers and views.
        columns: The columns of each table, by the name of the table in lower case.
        settings: The rows of the settings table.
        branched: The tables of items whose branches are listed in a table of upstream's. Names are
            in lower case.
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
        """Return ``column`` as it is in the database; None if it is missing."""
        return self.columns.get(column.table.name.lower(), {}).get(column.name.lower())

    @property
    def version(self) -> int:
        """Return the version of the schema; 0 if it is from before there were versions."""
        return int(self.settings.get(VERSION, "0"))

    def is_structured(self, names: TableNames) -> bool | None:
        """Return whether structured tables are kept; None if that is not decided yet."""
        if STRUCTURED in self.settings:
            return self.settings[STRUCTURED] == "true"
        if not self.has(names.events_table):
            return None
        tables = (names.conversation_table, names.tool_calls_table, names.usage_table)
        return any(map(self.has, tables))


def folded(part: Part) -> Part:
    """Return ``part`` in lower case, as most databases ignore the case of names."""
    return Part(part.kind, part.relation.lower(), part.name.lower())


async def look(dialect: Dialect, tables: Tables, fetch: Fetch, *, parts: str = "") -> Existing:
    """Return what exists, by a query of the catalog and one of the settings table if it exists.

    The dialect and ``tables`` are adapted to what is found: see `_learn`.

    Args:
        dialect: The database.
        tables: The tables of the store.
        fetch: Runs the queries.
        parts: A query for the parts of the schema; empty if they are not needed.
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
    """Adapt definitions and statements to what only the database can tell."""
    messages = tables.messages
    if found := existing.column(messages.c.id):
        dialect.follow_ids(tables.metadata.sorted_tables, messages, found)
    if messages.name.lower() in existing.branched:
        dialect.branched.add(messages.name)


class StructuredTablesKept(SettingsConflict):
    """The database keeps structured tables, and the options do not say whether to."""


def check_settings(names: TableNames, existing: Existing, *, turn_on: bool = False) -> None:
    """Refuse options that contradict the settings of the database.

    Args:
        names: The options.
        existing: What exists in the database.
        turn_on: Structured tables are to be kept from now on.

    Raises:
        SettingsConflict: The options contradict the settings.
    """
    if existing.version > SCHEMA_VERSION:
        raise SettingsConflict(
            f"the schema is of version {existing.version}, and this store knows versions up to "
            f"{SCHEMA_VERSION}: update eventmeta"
        )
    _check_pair(names, existing)
    structured = existing.is_structured(names)
    if structured and not names.structured_metadata:
        refusal = StructuredTablesKept if names.structured_metadata is None else SettingsConflict
        raise refusal(
            "this database keeps the tables of conversations, tool calls and tokens, and the "
            "store was opened without them: open it with structured_metadata=True"
        )
    if structured is False and names.structured_metadata and not turn_on:
        raise SettingsConflict(
            "this database does not keep the tables of conversations, tool calls and tokens, and "
            "the store was opened with structured_metadata=True: leave that out, or stop all "
            "processes that write, call `await "
            "store.create_tables(turn_on_structured_metadata=True)` once, then "
            "`await backfill_conversations(store)`, and start them with structured_metadata=True"
        )


def _check_pair(names: TableNames, existing: Existing) -> None:
    """Refuse to begin a new history for sessions whose history is in tables with default names.

    Such a history may exist if the sessions table has an owner column: only a store adds that.
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
