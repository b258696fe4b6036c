"""SQL over items on PostgreSQL, where one bad text would fail the statement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    FromClause,
    Function,
    Table,
    Text,
    case,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.sql.elements import quoted_name

from eventmeta.dialects.connecting import ConnectingDialect
from eventmeta.dialects.items import SPELLED_OUT, UNSPEAKABLE, ItemSQL
from eventmeta.dialects.postgresql.fast_path import Quoted
from eventmeta.dialects.postgresql.fast_path_items import structure_functions
from eventmeta.tables.tables import Tables
from projections import AnySelect


class PostgreSQLItems(ItemSQL, ConnectingDialect):
    """The SQL with which PostgreSQL reads items."""

    def item(self, messages: Table, text: ColumnElement[str]) -> ColumnElement[Any]:
        schema = (
            ()
            if self.schema is None
            else (quoted_name(self.schema.replace("%", "%%"), quote=True),)
        )
        name = quoted_name(_item_function(messages), quote=True)
        return Function(name, text, type_=JSON(), packagenames=schema)

    def item_string(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        is_string = func.json_typeof(_field(item, name)) == "string"
        return case((is_string, self.item_text(item, name)))

    def item_text(self, item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        return item.op("->>", return_type=Text())(literal_column(f"'{name}'"))

    def item_json(self, item: ColumnElement[Any], name: str | None) -> ColumnElement[Any]:
        value = item if name is None else _field(item, name)
        return func.nullif(cast(value, Text), "null")

    def select_item_ids(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        ids = func.json_array_elements_text(
            cast(events.c.data, JSON).op("->")(literal_column("'item_ids'"))
        ).table_valued("value", name="added_item", joins_implicitly=True)
        return select(*about, cast(ids.c.value, BigInteger).label("item_id")).select_from(
            events, ids
        )


def _field(item: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    return item.op("->", return_type=JSON())(literal_column(f"'{name}'"))


def _item_function(messages: Table) -> str:
    return f"{messages.name}_item"


def item_functions(tables: Tables, quoted: Quoted) -> dict[str, str]:
    """Return the DDL of the functions that statements over items call, by name.

    If PostgreSQL refuses a text as JSON, or cannot hold its strings, the function reads it again
    with bad escapes as plain characters. If that fails too, the text is not an item.
    """
    if tables.conversation is None:
        return {}
    try_it = """item := {text}::json;
  probe := item->>'type';
  RETURN CASE WHEN json_typeof(item) = 'object' THEN item END;"""
    spelled = f"regexp_replace(data, '{UNSPEAKABLE}', '{SPELLED_OUT}', 'g')"
    name = _item_function(tables.messages)
    return {
        **structure_functions(tables, quoted),
        name: f"""CREATE OR REPLACE FUNCTION {quoted(name)}(data text) RETURNS json
LANGUAGE plpgsql IMMUTABLE AS $item$
DECLARE item json; probe text;
BEGIN
  {try_it.format(text="data")}
EXCEPTION WHEN OTHERS THEN
  BEGIN
  {try_it.format(text=spelled)}
  EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
  END;
END $item$""",
    }
