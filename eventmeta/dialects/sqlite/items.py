"""SQL over items on SQLite, whose JSON functions end a text at NUL and return lone surrogates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Function,
    Table,
    case,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
)

from eventmeta.dialects.items import SUSPICIOUS, ItemSQL
from eventmeta.dialects.sqlite.columns import SQLiteColumns
from projections import AnySelect
from projections.types import LongText

SPELL_OUT = "eventmeta_spell_out"
"""The SQL name of `spell_out`, which every connection of the engine has as a function."""


class SQLiteItems(ItemSQL, SQLiteColumns):
    """The SQL with which SQLite reads items."""

    def in_main_branch(self, messages: Any) -> list[ColumnElement[bool]]:
        """Return the condition that an item has no row of branches, or one of the main branch.

        An item of another branch has a row there, and none of the main branch.
        """
        if messages.name not in self.branched:
            return []
        row = table(self.branches_table, column("message_id"), column("branch_id"))
        same = row.c.message_id == messages.c.id
        branches = select(func.max(row.c.branch_id == literal_column("'main'"))).where(same)
        return [
            func.coalesce(branches.scalar_subquery(), literal_column("1")) == literal_column("1")
        ]

    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        suspicious = or_(*(func.instr(text, literal(escape)) > 0 for escape in SUSPICIOUS))
        readable = case((suspicious, Function(SPELL_OUT, text)), else_=text)
        is_object = func.json_type(text) == "object"
        return case((func.json_valid(text) == 1, case((is_object, readable))))

    def item_string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        path: ColumnElement[str] = literal_column(f"'$.{name}'")
        extracted = func.json_extract(item, path, type_=LongText)
        return case((func.json_type(item, path) == "text", extracted))

    def item_text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        return func.coalesce(self.item_string(item, name), self.item_json(item, name))

    def item_json(self, item: ColumnElement[Any], name: str | None) -> ColumnElement[Any]:
        if name is None:
            return item
        path: ColumnElement[str] = literal_column(f"'$.{name}'")
        return func.nullif(item.op("->", return_type=LongText)(path), "null")

    def select_item_ids(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        added = func.json_each(events.c.data, literal_column("'$.item_ids'")).table_valued(
            "value", name="added_item", joins_implicitly=True
        )
        return select(*about, added.c.value.label("item_id")).select_from(events, added)
