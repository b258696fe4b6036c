"""Items that a database cannot take apart unless it is given their texts spelled out.

MariaDB would replace what it cannot read one by one, in a time that grows with the square of the
text. So it only finds those items, and what is to be read in their place is made of them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import FromClause, Integer, func, select
from sqlalchemy.types import TypeEngine

from eventmeta.dialects import Dialect
from eventmeta.dialects.items import SUSPICIOUS, spell_out
from eventmeta.dialects.statement import recordset
from projections import AnySelect
from projections.types import LongText

_SPELLED: Mapping[str, TypeEngine[Any]] = {"id": Integer(), "message_data": LongText}


def unreadable(dialect: Dialect, stored: FromClause) -> AnySelect | None:
    """Return the query for ``id, message_data`` of those of the ``stored`` items that are so.

    None for a database that reads every item. Elsewhere it may yield some more.
    """
    condition = dialect.is_unreadable(stored.c.message_data)
    if condition is None:
        return None
    return select(stored.c.id, stored.c.message_data).where(condition)


def spelled_out(items: Iterable[Sequence[Any]]) -> str:
    """Return the parameter ``spelled`` for ``items``: id and text of any that may need it."""
    return recordset(
        [
            {"id": item_id, "message_data": spelled}
            for item_id, text in items
            if any(escape in text for escape in SUSPICIOUS) and (spelled := spell_out(text)) != text
        ]
    )


def readable(dialect: Dialect, stored: FromClause) -> FromClause:
    """Return the ``stored`` items, with their texts of the parameter ``spelled`` if it has them."""
    if dialect.is_unreadable(stored.c.message_data) is None:
        return stored
    given = dialect.recordset("spelled", _SPELLED)
    # OFFSET keeps MariaDB from joining row by row: what it writes down it gives an index.
    spelled = select(*given.c).offset(0).subquery("spelled").c
    text = func.coalesce(spelled.message_data, stored.c.message_data).label("message_data")
    columns = [text if column.name == text.name else column for column in stored.c]
    same = spelled.id == stored.c.id
    return select(*columns).outerjoin_from(stored, spelled.id.table, same).subquery("readable")
