"""How a database takes stored items apart, whatever their texts are."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Executable, FromClause, Table

from projections import AnySelect

UNSPEAKABLE = (
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])"
    r"|(\\)(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""A JSON escape of what no text can hold: NUL, or one half of a character. (For any database.)

Whole characters and escapes of one letter are found as well, so that the search never begins within
one; they are the first group, and a bad one is the others.
"""

SUSPICIOUS = ("\\u0000", "\\ud", "\\uD")
"""What a text has in it that may have such an escape."""

SPELLED_OUT = r"\1\2\2\3"
"""What takes its place: the same as plain characters; the rest as it was."""

_UNSPEAKABLE = re.compile(UNSPEAKABLE)


def spell_out(text: str) -> str:
    """``text``, a JSON document, with what no text can hold spelled out."""
    return _UNSPEAKABLE.sub(SPELLED_OUT, text)


class Structure(NamedTuple):
    """What keeps the tables of conversations and tool calls within a larger statement.

    Attributes:
        states: `ItemRelations.states` of a relation called ``_touched``.
        items: What the tables are folded from, made of a relation called ``_new_items``.
        writes: The statement of each table over a relation called ``_turned``.
    """

    states: Executable
    items: Executable
    writes: Sequence[Executable]


class ItemSQL(ABC):
    """What a database is told of items."""

    def in_main_branch(self, messages: Any) -> list[ColumnElement[bool]]:
        """Return the condition that an item belongs to the main branch of its conversation.

        Args:
            messages: The table of items, or an alias of it.
        """
        return []

    @abstractmethod
    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        """The JSON object in ``text``, in the database's own form; NULL if there is none."""

    def is_unreadable(self, text: ColumnElement[str]) -> ColumnElement[bool] | None:
        """That `item` may fail for ``text`` unless `spell_out` was applied to it.

        None where `item` applies it by itself.
        """
        return None

    @abstractmethod
    def item_string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field ``name`` if it holds a string, else NULL."""

    @abstractmethod
    def item_text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field: a string as it is, others as JSON text, null as NULL."""

    @abstractmethod
    def item_json(self, item: ColumnElement[Any], name: str | None) -> ColumnElement[Any]:
        """The field, or the whole item, as JSON text; null as NULL."""

    @abstractmethod
    def select_item_ids(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        """``about`` and ``item_id`` of each of the ``item_ids`` in ``events.data``."""


@dataclass(frozen=True)
class MessageRelation:
    """Rows with the columns of ``projections.MESSAGE_COLUMNS``."""

    rows: FromClause
    dialect: ItemSQL

    def string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field ``name`` if it holds a string."""
        return self.dialect.item_string(item, name)

    def text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """The field as text."""
        return self.dialect.item_text(item, name)

    def json(self, item: ColumnElement[Any], name: str | None = None) -> ColumnElement[Any]:
        """The field, or the whole item, as JSON text."""
        return self.dialect.item_json(item, name)
