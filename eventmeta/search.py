"""Finding sessions by what is known about them."""

from __future__ import annotations

from typing import Any

from eventmeta.codec import check_key, indexed_value
from eventmeta.database import Database
from eventmeta.identifiers import check_count, check_session_id
from eventmeta.read_statements import NO_LIMIT


async def find_sessions(
    database: Database,
    key: str,
    value: Any,
    limit: int | None,
    after: str | None,
    *,
    create_tables: bool = False,
) -> list[str]:
    """Ids of the sessions whose ``key`` equals ``value``, in a stable order, from the index.

    Raises:
        InvalidInput: The key, value, limit or cursor cannot be used.
    """
    values = {
        "key": check_key(key),
        "indexed_value": indexed_value(value, key),
        "after": "" if after is None else check_session_id(after),
        "limit": NO_LIMIT if limit is None else check_count("limit", limit),
    }
    await database.connect(create=create_tables)
    rows = await database.fetch(database.reads.sessions_by_value(**values))
    return [row[0] for row in rows]
