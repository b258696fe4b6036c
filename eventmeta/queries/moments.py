"""The events that had been recorded by a moment: a prefix of each stream.

The times of a stream may go back if a clock was wrong (see `eventmeta.core.clocks`), so the events
with ``recorded_at <= moment`` need not be a prefix of the stream. As-of reading takes the shortest
prefix that holds all of them: it ends with the stream's last event, by version, that was recorded
by the moment. So a later moment never shows less, and the present shows every event that a right
clock recorded, with all events before it.

The events of a prefix that are themselves later than the moment are called overtaken.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Table, and_, func, or_, select

from projections import AnySelect


def last_version(log: Table, moment: ColumnElement[Any], **stream: Any) -> ColumnElement[int]:
    """Return the version of a stream's last event by ``moment``; NULL if there is none.

    Args:
        log: The table of events.
        moment: The moment.
        **stream: The ``stream_id`` and ``stream_type``.
    """
    seen = log.alias("seen")
    return (
        select(seen.c.version)
        .where(*(seen.c[name] == value for name, value in stream.items()))
        .where(seen.c.recorded_at <= moment)
        .order_by(seen.c.version.desc())
        .limit(1)
        .scalar_subquery()
    )


def recorded_by(log: Table, moment: ColumnElement[Any]) -> tuple[FromClause, ColumnElement[bool]]:
    """Return the log joined with `_ends_of_overtakers`, and the condition "is in its prefix"."""
    ends = _ends_of_overtakers(log, moment)
    overtaken = log.c.version <= ends.c.version
    return log.outerjoin(ends, _same_stream(log, ends)), or_(log.c.recorded_at <= moment, overtaken)


def overtaken_positions(log: Table, moment: ColumnElement[Any]) -> AnySelect:
    """Return the query for the positions of all overtaken events: none if clocks were right."""
    ends = _ends_of_overtakers(log, moment)
    return (
        select(log.c.position)
        .select_from(log.join(ends, _same_stream(log, ends)))
        .where(log.c.recorded_at > moment, log.c.version <= ends.c.version)
    )


def _ends_of_overtakers(log: Table, moment: ColumnElement[Any]) -> FromClause:
    """Return the last versions of all prefixes that hold overtaken events.

    Such a prefix holds more events than were recorded by ``moment``. The relation is materialized:
    otherwise PostgreSQL might scan the log for each event that it joins.
    """
    seen = log.alias("seen")
    last = func.max(seen.c.version)
    return (
        select(seen.c.stream_id, seen.c.stream_type, last.label("version"))
        .where(seen.c.recorded_at <= moment)
        .group_by(seen.c.stream_id, seen.c.stream_type)
        .having(last > func.count())
        .cte("ends")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


def _same_stream(log: Table, ends: FromClause) -> ColumnElement[bool]:
    return and_(log.c.stream_id == ends.c.stream_id, log.c.stream_type == ends.c.stream_type)
