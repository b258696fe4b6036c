"""Items on MySQL and MariaDB, which nest JSON to a depth of 100 and 32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Table,
    case,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
)

from eventmeta.dialects.items import SUSPICIOUS, ItemSQL
from eventmeta.dialects.mysql.schema import MySQLSchema
from projections import AnySelect
from projections.types import LongText

_MARK = "\x01"
_HALF = (
    r"\\(u[dD][89abAB][0-9a-fA-F]{2})(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\(u[dD][c-fC-F][0-9a-fA-F]{2})"
)
"""The escape of one half of a character, where no backslash is escaped."""


class MySQLItems(ItemSQL, MySQLSchema):
    """What MySQL is told of items."""

    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        suspicious = or_(*(func.locate(literal(escape), text) > 0 for escape in SUSPICIOUS))
        # No JSON holds the mark as it is.
        spelled = case((func.locate(literal(_MARK), text) == 0, self._spelled_out(text)))
        readable = case((suspicious, spelled), else_=text)
        is_object = func.json_type(readable) == "OBJECT"
        return case((func.json_valid(readable) == 1, case((is_object, readable))))

    def _spelled_out(self, text: ColumnElement[str]) -> ColumnElement[str]:
        """As `spell_out` does it, but with a mark in the place of each escaped backslash.

        So that the search finds only what it is for: MariaDB takes a time for each thing found
        that grows with the text.
        """
        half = r"\1\2" if self.is_mariadb else "$1$2"
        marked = func.replace(text, literal("\\\\"), literal(_MARK))
        without_nul = func.replace(marked, literal("\\u0000"), literal(f"{_MARK}u0000"))
        whole = func.regexp_replace(
            without_nul, literal(_HALF), literal(f"{_MARK}{half}"), type_=LongText
        )
        return func.replace(whole, literal(_MARK), literal("\\\\"), type_=LongText)

    def item_string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        value = self._field(item, name)
        return case((func.json_type(value) == "STRING", self._unquoted(value)))

    def item_text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        value = self._field(item, name)
        return case((func.json_type(value) != "NULL", self._unquoted(value)))

    def item_json(self, item: ColumnElement[Any], name: str | None) -> ColumnElement[Any]:
        if name is None:
            return item
        value = self._field(item, name)
        return case((func.json_type(value) != "NULL", value))

    def _field(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        value = func.json_extract(item, literal_column(f"'$.{name}'"), type_=LongText)
        return value.collate(self.collation)

    def _unquoted(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.json_unquote(value, type_=LongText).collate(self.collation)

    def select_item_ids(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        added = func.json_table(
            events.c.data,
            literal_column("'$.item_ids[*]' COLUMNS (`item_id` BIGINT PATH '$')"),
        ).table_valued(column("item_id", BigInteger), name="added_item", joins_implicitly=True)
        return select(*about, added.c.item_id).select_from(events, added)
