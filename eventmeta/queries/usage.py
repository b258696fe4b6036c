"""Sums over the table of used tokens, computed by the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, cast, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy import cast as sql_cast

from eventmeta.core.errors import InvalidInput, InvalidPoint, StructuredMetadataOff
from eventmeta.core.usage import GroupedUsage, UsageTotals
from eventmeta.core.validation import check_count, check_moment
from eventmeta.database.database import Database
from eventmeta.queries.scope import Scope
from projections import AnySelect
from projections.types import SessionId

UsageGroup = Literal["user", "agent", "model", "day", "session"]
"""The values by which usage can be grouped."""


def check_group(value: object) -> UsageGroup | None:
    """Return ``value`` if usage can be grouped by it.

    Raises:
        InvalidInput: Usage cannot be grouped by it.
    """
    if value is not None and value not in get_args(UsageGroup):
        names = ", ".join(map(repr, get_args(UsageGroup)))
        raise InvalidInput(f"group_by {value!r} is not known: give one of {names}, or None")
    return cast("UsageGroup | None", value)


def check_time(what: str, value: object) -> datetime | None:
    """Return ``value`` if it is a point in time.

    Raises:
        InvalidPoint: It is not a point in time.
    """
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidPoint(f"{what} {value!r} is no point in time: give an aware datetime")
    return check_moment(value)


async def check_structured(database: Database, call: str) -> None:
    """Refuse ``call`` if there is no table of used tokens.

    Raises:
        StructuredMetadataOff: The database does not keep structured tables.
    """
    if database.tables.names.structured_metadata is None:
        await database.opening.connect(create=False)  # finds out whether there are such tables
    if database.tables.usage is None:
        raise StructuredMetadataOff(call)


async def grouped_usage(
    view: Scope,
    group_by: UsageGroup | None,
    since: datetime | None,
    until: datetime | None,
) -> list[GroupedUsage]:
    """Return the sums of each group, in the order of their keys; usage without a key comes first.

    Args:
        view: The scope to read in.
        group_by: The value to group by; None for one sum.
        since: Only usage from this time on.
        until: Only usage before this time.
    """
    database, used = view.database, _table(view.database)
    conditions = [
        *view.reads.ownership.of_session(used.c.session_id),
        *view.reads.ownership.since_position(used.c.id, used.c.session_id),
    ]
    if since is not None:
        conditions.append(used.c.created_at >= bindparam("since", type_=used.c.created_at.type))
    if until is not None:
        conditions.append(used.c.created_at < bindparam("until", type_=used.c.created_at.type))
    query = _by(database, group_by).where(*conditions)
    rows = await database.read(query, view.limits, since=since, until=until, **view.owner)
    found = [_group(row) for row in rows]
    return sorted(found, key=lambda group: (group.key is not None, group.key or ""))


async def session_usage(
    view: Scope, session_id: str, *, turn: int | None, run_id: str | None
) -> UsageTotals:
    """Return the sums of one session, or of one of its turns or runs."""
    database, used = view.database, _table(view.database)
    conditions = _of_session(view)
    if turn is not None:
        conditions.append(used.c.user_message_id.in_(_user_messages(database)))
    if run_id is not None:
        conditions.append(used.c.run_id == bindparam("run_id"))
    query = select(*_sums(database)).where(*conditions)
    values = {"session_id": session_id, "turn": turn, "run_id": run_id}
    (row,) = await database.read(query, view.limits, **values, **view.owner)
    return _totals(row)


async def turn_usage(view: Scope, session_id: str) -> dict[int, UsageTotals]:
    """Return the sums of each turn of a session whose user message exists, by turn."""
    database = view.database
    assert database.tables.conversation is not None
    used, said = _table(database), database.tables.conversation.table
    query = (
        select(said.c.turn, *_sums(database))
        .select_from(used.join(said, said.c.id == used.c.user_message_id))
        .where(*_of_session(view), said.c.session_id == bindparam("session_id"))
        .group_by(said.c.turn)
    )
    rows = await database.read(query, view.limits, session_id=session_id, **view.owner)
    return {row[0]: _totals(row[1:]) for row in rows}


def check_turn(value: object) -> int | None:
    """Return ``value`` if it can be the number of a turn."""
    return None if value is None else check_count("turn", value)


def _of_session(view: Scope) -> list[ColumnElement[bool]]:
    """Return the conditions that usage is of the parameter ``session_id`` and visible."""
    wanted: ColumnElement[str] = bindparam("session_id", type_=SessionId)
    used = _table(view.database)
    ownership = view.reads.ownership
    return [
        used.c.session_id == wanted,
        *ownership.of_session(wanted),
        *ownership.since_position(used.c.id, wanted),
    ]


def _table(database: Database) -> Any:
    assert database.tables.usage is not None
    return database.tables.usage.table


def _sums(database: Database) -> list[ColumnElement[Any]]:
    used = _table(database)

    def detail(column: ColumnElement[str], name: str) -> ColumnElement[Any]:
        return sql_cast(database.dialect.json_text(column, name), BigInteger)

    counts = (
        used.c.requests,
        used.c.input_tokens,
        used.c.output_tokens,
        used.c.total_tokens,
        detail(used.c.input_tokens_details, "cached_tokens"),
        detail(used.c.input_tokens_details, "cache_write_tokens"),
        detail(used.c.output_tokens_details, "reasoning_tokens"),
    )
    return [func.coalesce(func.sum(count), 0) for count in counts]


def _by(database: Database, group_by: UsageGroup | None) -> AnySelect:
    used, heads = _table(database), database.tables.streams
    if group_by is None:
        return select(null(), *_sums(database))
    source: Any = used
    if group_by == "user":
        head = and_(heads.c.stream_id == used.c.session_id, heads.c.stream_type == "session")
        source = used.outerjoin(heads, head)
    keys: dict[UsageGroup, ColumnElement[Any]] = {
        # A deleted owner is an empty text.
        "user": func.nullif(func.coalesce(used.c.user_id, heads.c.user_id), literal_column("''")),
        "agent": used.c.agent,
        "model": used.c.model,
        "day": database.dialect.utc_day(used.c.created_at),
        "session": used.c.session_id,
    }
    key = keys[group_by].label("group_key")
    return select(key, *_sums(database)).select_from(source).group_by(key)


def _user_messages(database: Database) -> AnySelect:
    """Return the query for the user messages of a turn: ``session_id``, ``turn`` → ``id``."""
    assert database.tables.conversation is not None
    said = database.tables.conversation.table
    return select(said.c.id).where(
        said.c.session_id == bindparam("session_id"),
        said.c.turn == bindparam("turn", type_=BigInteger()),
        said.c.role == "user",
    )


def _group(row: Sequence[Any]) -> GroupedUsage:
    key, *sums = row
    return GroupedUsage(**asdict(_totals(sums)), key=None if key is None else str(key))


def _totals(row: Sequence[Any]) -> UsageTotals:
    return UsageTotals(*map(int, row))
