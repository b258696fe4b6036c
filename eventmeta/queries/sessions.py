"""Finding sessions: by their metadata, by their owner, by their last change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import orjson

from eventmeta.core.as_of import parse_log_as_of
from eventmeta.core.canonical_json import check_key, indexed_value
from eventmeta.core.errors import InvalidInput
from eventmeta.core.events import Position
from eventmeta.core.validation import check_count, check_session_id
from eventmeta.database.corruption import naming_corruption
from eventmeta.database.event_reading import LogReading
from eventmeta.dialects.statement import Row
from eventmeta.queries.scope import Scope
from eventmeta.queries.statements import LIKE_ESCAPE, NO_LIMIT


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session in a list.

    Attributes:
        session_id: The session.
        user_id: Its owner; None if it has none.
        created_at: When it was created, by the clock of the database, in UTC. (Upstream's class
            writes the time zone of its connection on PostgreSQL; on MySQL and MariaDB a TIMESTAMP
            is read in that of the connection.)
        updated_at: When its items last changed, likewise.
    """

    session_id: str
    user_id: str | None
    created_at: datetime
    updated_at: datetime


async def find_sessions(
    view: Scope,
    key: str,
    value: Any,
    limit: int | None,
    after: str | None,
    as_of: int | Position | datetime | None = None,
    *,
    create_tables: bool = False,
) -> list[str]:
    """Return the ids of the sessions whose ``key`` equals ``value``, in a stable order.

    The present is read from the index, and the state ``as_of`` a point from the log. On behalf of a
    user, only sessions that the user owns are found.

    Raises:
        InvalidInput: The key, value, limit, cursor or point cannot be used.
    """
    bound = None if as_of is None else parse_log_as_of(as_of)
    values: dict[str, Any] = {
        "key": check_key(key),
        "indexed_value": indexed_value(value, key),
        "after": "" if after is None else check_session_id(after),
        "limit": _count("limit", limit),
    }
    await view.database.opening.connect(create=create_tables)
    own = view.own
    if bound is None:
        return [row[0] for row in await own.fetch(own.reads.sessions_by_value, **values)]
    statement = own.reads.sessions_by_value_as_of[bound.column]
    values |= {"bound": bound.value, "pattern": _naming(key)}
    async with naming_corruption(LogReading(view.database)):
        return [row[0] for row in await own.fetch(statement, **values)]


def _naming(key: str) -> str:
    """Return the LIKE pattern of the payloads that name ``key``."""
    text = orjson.dumps(key).decode()
    for special in (LIKE_ESCAPE, "%", "_"):
        text = text.replace(special, LIKE_ESCAPE + special)
    return f"%{text}%"


async def session_exists(view: Scope, session_id: str, *, create_tables: bool = False) -> bool:
    """Return whether the session exists and is visible."""
    await view.database.opening.connect(create=create_tables)
    return bool(await view.fetch(view.reads.session, session_id=session_id))


async def latest_sessions(
    view: Scope, limit: int | None, offset: int, *, create_tables: bool = False
) -> list[str]:
    """Return the ids of the sessions, the latest change first.

    Sessions of the same moment are in the order of their ids, the greatest first. On behalf of a
    user, only sessions that the user owns are listed.

    Raises:
        InvalidInput: ``limit`` or ``offset`` is not a whole number from 0 on.
    """
    values = {"limit": _count("limit", limit), "offset": check_count("offset", offset)}
    await view.database.opening.connect(create=create_tables)
    own = view.own
    return [row[0] for row in await own.fetch(own.reads.first_sessions, **values)]


async def list_sessions(
    view: Scope, limit: int | None, after: SessionEntry | None
) -> list[SessionEntry]:
    """Return the sessions that come after ``after``, in the order of `latest_sessions`.

    Raises:
        InvalidInput: ``limit`` is not a whole number from 0 on, or ``after`` is no entry.
    """
    count = _count("limit", limit)
    cursor = {} if after is None else _cursor(after)
    await view.database.opening.connect(create=False)
    own = view.own
    rows: Sequence[Row]
    if after is None:
        rows = await own.fetch(own.reads.first_sessions, limit=count, offset=0)
    else:
        rows = await own.fetch(own.reads.next_sessions, limit=count, **cursor)
    return [SessionEntry(*row) for row in rows]


def _cursor(after: object) -> dict[str, Any]:
    """Return the parameters for the place of ``after`` in the order.

    The time must be as the database returned it, without a time zone.
    """
    if not isinstance(after, SessionEntry):
        raise InvalidInput(f"after={after!r} is no SessionEntry; give the last entry of a page")
    changed_at = cast("object", after.updated_at)
    if not isinstance(changed_at, datetime) or changed_at.tzinfo is not None:
        raise InvalidInput(f"after: {changed_at!r} is not the updated_at of any entry of a page")
    return {"updated_at": changed_at, "session_id": check_session_id(after.session_id)}


def _count(what: str, value: int | None) -> int:
    return NO_LIMIT if value is None else check_count(what, value)
