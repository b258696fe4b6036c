"""The one statement that appends a batch of unconditional commands, if the database has one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnClause, column, table

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.read_models.fold import upsert_rows
from eventmeta.read_models.item_statements import ItemStatements
from eventmeta.tables.tables import Tables
from projections import EVENT_COLUMNS
from projections.types import UtcDateTime


@dataclass(frozen=True)
class FastPathStatements:
    """The statements of the fast path: one for each combination of contents, compiled at first use.

    A batch with fewer kinds of contents gets a shorter statement.

    Attributes:
        tables: The store's tables.
        dialect: Its database.
        structure: The statements of the structured tables; None if these are not kept.
    """

    tables: Tables
    dialect: Dialect
    structure: ItemStatements | None

    _compiled: dict[tuple[bool, ...], Statement | None] = field(
        default_factory=dict[tuple[bool, ...], "Statement | None"], compare=False
    )

    def one(
        self, *, with_metadata: bool, with_items: bool, with_tools: bool, for_users: bool
    ) -> Statement | None:
        """Return the statement ``events``, ``items`` → recorded events, or None.

        None means that the database has no such statement, or that the app has projections of its
        own, so the batch has to be appended in steps.

        Args:
            with_metadata: Whether metadata is set. Its rows are parameters as well, by column.
            with_items: Whether items are added.
            with_tools: Whether there may be tool calls among the items.
            for_users: Whether commands are on behalf of users, who must own the streams.
        """
        with_tools = with_tools and self.structure is not None
        kind = (with_metadata, with_items, with_tools, for_users)
        if kind not in self._compiled:
            self._compiled[kind] = self._compile(*kind)
        return self._compiled[kind]

    def _compile(
        self, with_metadata: bool, with_items: bool, with_tools: bool, for_users: bool
    ) -> Statement | None:
        if self.tables.inline:
            return None  # an app's projection may remove rows, which takes a step of its own
        columns: list[ColumnClause[Any]] = [column(name) for name in EVENT_COLUMNS]
        events = self.dialect.relation(table("_appended", *columns))
        usage, metadata = self.tables.usage, self.tables.session_metadata
        sql = self.dialect.append_in_one_statement(
            self.tables,
            [upsert_rows(usage, self.dialect, events)] if usage else [],
            with_items=with_items,
            for_users=for_users,
            structure=self.structure.at_once(with_tools=with_tools) if self.structure else None,
            folded=metadata if with_metadata else None,
        )
        names = ["events", *(["items"] if with_items else [])]
        if with_metadata:
            names += [
                column.name
                for column in metadata.table.columns
                if not isinstance(column.type, UtcDateTime)
            ]
        return Statement(sql, names) if sql else None
