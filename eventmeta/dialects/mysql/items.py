"""SQL over items on MySQL and MariaDB, which nest JSON at most 100 and 32 levels deep."""

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

from eventmeta.dialects.items import SUSPICIOUS, UNSPEAKABLE, ItemSQL
from eventmeta.dialects.mysql.ddl import MySQLSchema
from projections import AnySelect
from projections.types import LongText

_UNREADABLE = UNSPEAKABLE.replace(")|", ")(*SKIP)(*FAIL)|")
"""A pattern that matches only bad escapes: it skips whole characters, so one search is enough."""


class MySQLItems(ItemSQL, MySQLSchema):
    """The SQL with which MySQL and MariaDB read items."""

    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        is_object = func.json_type(text) == "OBJECT"
        return case((func.json_valid(text) == 1, case((is_object, text))))

    def is_unreadable(self, text: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition of one search for a bad escape.

        Replacing escapes instead would take MariaDB a time that grows with the square of their
        number.

        MySQL's expressions cannot skip, so there the condition finds texts that *may* have one.
        """
        if self.is_mariadb:
            return text.regexp_match(literal(_UNREADABLE))
        return or_(*(func.locate(literal(escape), text) > 0 for escape in SUSPICIOUS))

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
