"""The statements that keep the tables of conversations and tool calls, compiled once."""

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
    """What brings a table to what the items of ``sessions`` say. Rows that are so stay as they are.

    Attributes:
        others: ``sessions`` → the ``id`` of the rows that should not be, or not be so.
        remove: ``items``, by their ``id``.
        write: ``sessions`` → the rows that are missing.
    """

    others: Statement
    remove: Statement
    write: Statement


@dataclass(frozen=True)
class ItemStatements:
    """What follows a change of items, in the order in which a batch runs it."""

    tables: Tables
    conversation: ItemProjection
    tool_calls: ItemProjection
    dialect: Dialect
    spelled: bool = False

    @cached_property
    def with_spelled(self) -> ItemStatements:
        """The same statements for ``spelled``, some rows of which are given: see `spelled_out`."""
        return replace(self, spelled=True)

    @cached_property
    def states(self) -> Statement:
        """``sessions`` → ``session_id, turn, parent, stale``.

        Each is given with its ``first`` new item, and the one that is ``gone``, if any.
        """
        items = {"first": BigInteger(), "gone": BigInteger()}
        given = self.dialect.recordset("sessions", {**_SESSION, **items})
        message = self.tables.messages.c
        at = select(message.created_at).where(message.id == given.c.first).scalar_subquery()
        sessions = select(*given.c, at.label("at")).subquery("sessions")
        return self.dialect.compile(self.dialect.current(self._relations.states(sessions)))

    @cached_property
    def unreadable_linked(self) -> Statement | None:
        """``links``, ``removed`` items → ``id, message_data`` of what is linked with them.

        Only of what is to be ``spelled`` for this database; None if it needs nothing of the kind.
        """
        links = self.dialect.recordset("links", {**_SESSION, "call_id": String(255)})
        removed = self.dialect.recordset("removed", _REMOVED)
        return self._unreadable(self._relations.linked(links, removed))

    @cached_property
    def unreadable(self) -> Statement | None:
        """``sessions`` → the same of their items."""
        return self._unreadable(
            self._relations.stored(self.dialect.recordset("sessions", _SESSION))
        )

    def _unreadable(self, stored: FromClause) -> Statement | None:
        query = unreadable(self.dialect, stored)
        return None if query is None else self.dialect.compile(self.dialect.current(query))

    @cached_property
    def write_tool_calls(self) -> Statement:
        """``added`` items, ``removed`` items → their tool calls, complete or open again."""
        removed = self.dialect.recordset("removed", _REMOVED)
        items = self._relations.added_and_linked(self._added, removed)
        return self.dialect.compile(write_items(self.tool_calls, self.dialect, items))

    @cached_property
    def write_conversation(self) -> Statement:
        """``added`` items → the rest of them. To run last, for it changes the state."""
        items = self._relations.added(self._added)
        return self.dialect.compile(write_items(self.conversation, self.dialect, items))

    @cached_property
    def rebuild(self) -> list[RebuildStatements]:
        """Both tables, each with what makes it what the items of ``sessions`` say."""
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
        actual = self.dialect.group_read(given, list(row), row.session_id == given.c.session_id)
        others = actual.except_(projection.select(items)).subquery("others")
        return select(others.c.id)

    def _removal(self, projection: ItemProjection) -> Delete:
        gone = self.dialect.recordset("items", {"id": BigInteger()})
        return self.dialect.delete_matching(projection.table, select(gone.c.id).subquery("gone"))

    def at_once(self, *, with_tools: bool) -> Structure:
        """The same within the one statement that appends a batch, where there is one."""
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
        """The items of the parameter ``added``, from where they are stored."""
        given, message = self.dialect.recordset("added", _ADDED), self.tables.messages.c
        stored = [message.id, message.session_id, message.message_data, message.created_at]
        about = [given.c[name] for name in ("context", "turn_before", "parent_before")]
        same = message.id == given.c.id
        return self.dialect.group_read(given, stored, same, *about).subquery("added")


def write_items(
    projection: ItemProjection, dialect: Dialect, items: MessageRelation, *, update: bool = True
) -> Insert:
    """Write the rows that ``items`` fold to; those that exist are left alone unless ``update``."""
    table = projection.table
    columns = [column.name for column in table.columns]
    fold = projection.select(items).subquery("fold")
    source = select(*(fold.c[name] for name in columns)).order_by(fold.c.id)
    changing = [name for name in columns if name != "id"] if update else []
    return dialect.upsert(table, columns, source, changing)
