"""SQL that reads the fields of stored items, whatever characters their texts contain."""

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
"""A pattern for a JSON escape of what no text can hold: NUL, or a lone surrogate.

It is for any database. Whole characters and escapes of one letter match as well, so that the search
never begins inside an escape. They match the first group; an escape that no text can hold matches
the others.
"""

SUSPICIOUS = ("\\u0000", "\\ud", "\\uD")
"""Substrings of which a text with such an escape has at least one."""

SPELLED_OUT = r"\1\2\2\3"
"""The replacement: such an escape as plain characters; other matches unchanged."""

_UNSPEAKABLE = re.compile(UNSPEAKABLE)


def spell_out(text: str) -> str:
    """Return ``text``, a JSON document, with escapes that no text can hold as plain characters."""
    return _UNSPEAKABLE.sub(SPELLED_OUT, text)


class Structure(NamedTuple):
    """The statements that keep the tables of items within a larger statement.

    Attributes:
        states: `ItemRelations.states` of a relation called ``_touched``.
        items: The relation that the tables are folded from, made of a relation ``_new_items``.
        writes: The statement of each table over a relation called ``_turned``.
    """

    states: Executable
    items: Executable
    writes: Sequence[Executable]


class ItemSQL(ABC):
    """The SQL with which a database reads items."""

    def in_main_branch(self, messages: Any) -> list[ColumnElement[bool]]:
        """Return conditions that an item belongs to the main branch of its conversation.

        Args:
            messages: The table of items, or an alias of it.
        """
        return []

    @abstractmethod
    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        """Return the JSON object in ``text``, in the database's own form; NULL if there is none."""

    def is_unreadable(self, text: ColumnElement[str]) -> ColumnElement[bool] | None:
        """Return the condition that `item` may fail for ``text`` unless `spell_out` was applied.

        Return None if `item` applies it by itself.
        """
        return None

    @abstractmethod
    def item_string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field ``name`` if it holds a string, else NULL."""

    @abstractmethod
    def item_text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field: a string as it is, other values as JSON text, null as NULL."""

    @abstractmethod
    def item_json(self, item: ColumnElement[Any], name: str | None) -> ColumnElement[Any]:
        """Return the field, or the whole item, as JSON text; null as NULL."""

    @abstractmethod
    def select_item_ids(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        """Select ``about`` and ``item_id`` of each of the ``item_ids`` in ``events.data``."""


@dataclass(frozen=True)
class MessageRelation:
    """Rows with the columns of ``projections.MESSAGE_COLUMNS``."""

    rows: FromClause
    dialect: ItemSQL

    def string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field ``name`` if it holds a string."""
        return self.dialect.item_string(item, name)

    def text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        """Return the field as text."""
        return self.dialect.item_text(item, name)

    def json(self, item: ColumnElement[Any], name: str | None = None) -> ColumnElement[Any]:
        """Return the field, or the whole item, as JSON text."""
        return self.dialect.item_json(item, name)
