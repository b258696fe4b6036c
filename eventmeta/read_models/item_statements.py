"""Statements that keep the tables of conversations and tool calls, compiled at first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Delete,
    FromClause,
    Insert,
    Integer,
    String,
    column,
    select,
    table,
)
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.items import MessageRelation, Structure
from eventmeta.dialects.statement import Statement
from eventmeta.read_models.item_relations import STORED, ItemRelations
from eventmeta.read_models.spelling import unreadable
from eventmeta.tables.tables import Tables
from projections import AnySelect, ItemProjection
from projections.items import TURN_COLUMNS
from projections.types import LongText, SessionId

_SESSION: Mapping[str, TypeEngine[Any]] = {"session_id": SessionId}
_ADDED: Mapping[str, TypeEngine[Any]] = {
    "id": BigInteger(),
    "context": LongText,
    "turn_before": Integer(),
    "parent_before": BigInteger(),
}
_REMOVED: Mapping[str, TypeEngine[Any]] = {**_SESSION, "id": BigInteger()}


class RebuildStatements(NamedTuple):
    """Statements that make a table match the items of ``sessions``; correct rows are not touched.

    Attributes:
        others: Selects wrong rows: ``sessions`` → the ``id`` of rows that should not be there, or
            that should be different.
        remove: Deletes rows: ``items``, by their ``id``.
        write: Inserts the missing rows of ``sessions``.
    """

    others: Statement
    remove: Statement
    write: Statement


@dataclass(frozen=True)
class ItemStatements:
    """The statements that follow a change of items, in the order in which a batch runs them.

    Each property that is a statement says what the statement does, then its parameters → the
    columns of its rows.
    """

    tables: Tables
    conversation: ItemProjection
    tool_calls: ItemProjection
    dialect: Dialect
    spelled: bool = False

    @cached_property
    def with_spelled(self) -> ItemStatements:
        """Return the same statements with the parameter ``spelled``: see `spelled_out`."""
        return replace(self, spelled=True)

    @cached_property
    def states(self) -> Statement:
        """Select the state of sessions: ``sessions`` → ``session_id, turn, parent, stale``.

        Each session is given with its ``first`` new item and its ``gone`` item, or NULL.
        """
        items = {"first": BigInteger(), "gone": BigInteger()}
        given = self.dialect.recordset("sessions", {**_SESSION, **items})
        message = self.tables.messages.c
        at = select(message.created_at).where(message.id == given.c.first).scalar_subquery()
        sessions = select(*given.c, at.label("at")).subquery("sessions")
        return self.dialect.compile(self.dialect.current(self._relations.states(sessions)))

    @cached_property
    def unreadable_linked(self) -> Statement | None:
        """Select linked items to spell out: ``links``, ``removed`` → ``id, message_data``.

        Only items that this database cannot read are selected; None if it reads every item.
        """
        links = self.dialect.recordset("links", {**_SESSION, "call_id": String(255)})
        removed = self.dialect.recordset("removed", _REMOVED)
        return self._unreadable(self._relations.linked(links, removed))

    @cached_property
    def unreadable(self) -> Statement | None:
        """Select items of sessions to spell out: ``sessions`` → ``id, message_data``.

        Only items that this database cannot read are selected; None if it reads every item.
        """
        return self._unreadable(
            self._relations.stored(self.dialect.recordset("sessions", _SESSION))
        )

    def _unreadable(self, stored: FromClause) -> Statement | None:
        query = unreadable(self.dialect, stored)
        return None if query is None else self.dialect.compile(self.dialect.current(query))

    @cached_property
    def write_tool_calls(self) -> Statement:
        """Write the tool calls of the ``added`` items, and reopen those of the ``removed`` ones."""
        removed = self.dialect.recordset("removed", _REMOVED)
        items = self._relations.added_and_linked(self._added, removed)
        return self.dialect.compile(write_items(self.tool_calls, self.dialect, items))

    @cached_property
    def write_conversation(self) -> Statement:
        """Write the conversation rows of the ``added`` items. Run it last: it changes the state."""
        items = self._relations.added(self._added)
        return self.dialect.compile(write_items(self.conversation, self.dialect, items))

    @cached_property
    def rebuild(self) -> list[RebuildStatements]:
        """Return, for each of both tables, the statements that rebuild it for ``sessions``."""
        given = self.dialect.recordset("sessions", _SESSION)
        items = self._relations.of_sessions(given)
        compile_ = self.dialect.compile
        return [
            RebuildStatements(
                compile_(self._others(projection, items, given)),
                compile_(self._removal(projection)),
                compile_(write_items(projection, self.dialect, items, update=False)),
            )
            for projection in (self.tool_calls, self.conversation)
        ]

    def _others(
        self, projection: ItemProjection, items: MessageRelation, given: FromClause
    ) -> AnySelect:
        row = projection.table.c
        actual = self.dialect.look_up(given, list(row), row.session_id == given.c.session_id)
        others = actual.except_(projection.select(items)).subquery("others")
        return select(others.c.id)

    def _removal(self, projection: ItemProjection) -> Delete:
        gone = self.dialect.recordset("items", {"id": BigInteger()})
        return self.dialect.delete_matching(projection.table, select(gone.c.id).subquery("gone"))

    def at_once(self, *, with_tools: bool) -> Structure:
        """Return the parts that update both tables within the one statement that appends a batch.

        Args:
            with_tools: There may be tool items among the added ones.
        """
        touched = table("_touched", *map(column, ("session_id", "at", "moved")))
        state = ("context", "turn_before", "parent_before")
        new = table("_new_items", *map(column, (*STORED, *state)))
        relations = self._relations
        items = relations.added_and_linked(new) if with_tools else relations.added(new)
        turned = MessageRelation(table("_turned", *map(column, TURN_COLUMNS)), self.dialect)
        kept = (self.tool_calls, self.conversation) if with_tools else (self.conversation,)
        return Structure(
            relations.states(touched),
            select(items.rows),
            [write_items(projection, self.dialect, turned) for projection in kept],
        )

    @property
    def _relations(self) -> ItemRelations:
        return ItemRelations(self.tables, self.dialect, self.spelled)

    @property
    def _added(self) -> FromClause:
        """Return the items of the parameter ``added``, as they are stored."""
        given, message = self.dialect.recordset("added", _ADDED), self.tables.messages.c
        stored = [message.id, message.session_id, message.message_data, message.created_at]
        about = [given.c[name] for name in ("context", "turn_before", "parent_before")]
        same = message.id == given.c.id
        return self.dialect.look_up(given, stored, same, *about).subquery("added")


def write_items(
    projection: ItemProjection, dialect: Dialect, items: MessageRelation, *, update: bool = True
) -> Insert:
    """Return the INSERT of the rows that ``items`` fold to.

    Rows that exist are overwritten if ``update``, and left alone otherwise.
    """
    table = projection.table
    columns = [column.name for column in table.columns]
    fold = projection.select(items).subquery("fold")
    source = select(*(fold.c[name] for name in columns)).order_by(fold.c.id)
    changing = [name for name in columns if name != "id"] if update else []
    return dialect.upsert(table, columns, source, changing)
