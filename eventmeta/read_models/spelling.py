"""Items that a database cannot parse, and the texts that it reads in their place.

MariaDB could replace the escapes that it cannot read, but one by one, in a time that grows with the
square of the text. So MariaDB only finds those items, and this module makes the replacing texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import FromClause, Integer, func, select
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.items import SUSPICIOUS, spell_out
from projections import AnySelect
from projections.items import TOOL_ITEMS, Part, may_be_tool_item
from projections.types import LongText

_SPELLED: Mapping[str, TypeEngine[Any]] = {"id": Integer(), "message_data": LongText}


def unreadable(dialect: Dialect, stored: FromClause) -> AnySelect | None:
    """Return the query for ``id, message_data`` of ``stored`` items that the database cannot parse.

    None for a database that can parse every item. The query may yield further items.
    """
    condition = dialect.is_unreadable(stored.c.message_data)
    if condition is None:
        return None
    return select(stored.c.id, stored.c.message_data).where(condition)


def spelled_out(items: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the rows of the parameter ``spelled``: id and text of ``items`` to be spelled out."""
    return [
        {"id": item_id, "message_data": spelled}
        for item_id, text in items
        if any(escape in text for escape in SUSPICIOUS) and (spelled := spell_out(text)) != text
    ]


def completed_calls(texts: Iterable[str]) -> Iterator[str]:
    """Yield the ids of the calls that the outputs among items of these ``texts`` may complete."""
    for text in filter(may_be_tool_item, texts):
        try:
            item: object = json.loads(spell_out(text))
        except (ValueError, RecursionError):
            continue
        fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
        tool = TOOL_ITEMS.get(str(fields.get("type")))
        if tool is not None and tool.part is Part.OUTPUT:
            ids = (fields.get(name) for name in tool.call_id)
            yield next((call_id for call_id in ids if isinstance(call_id, str)), "")


def readable(dialect: Dialect, stored: FromClause) -> FromClause:
    """Return the ``stored`` items, with the texts of the parameter ``spelled`` where given."""
    given = dialect.recordset("spelled", _SPELLED)
    # OFFSET has MariaDB materialize the rows with an index, and not join row by row.
    spelled = select(*given.c).offset(0).subquery("spelled").c
    text = func.coalesce(spelled.message_data, stored.c.message_data).label("message_data")
    columns = [text if column.name == text.name else column for column in stored.c]
    same = spelled.id == stored.c.id
    return select(*columns).outerjoin_from(stored, spelled.id.table, same).subquery("readable")
