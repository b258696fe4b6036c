"""Finding the run of a ``Usage`` that was restored from JSON, and the SDK's current trace."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import ColumnElement, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.canonical_json import text_problem
from eventmeta.core.events import USAGE_RECORDED, StreamKey
from eventmeta.core.usage import NOTHING, UsageTotals
from eventmeta.queries.scope import Scope
from projections.types import SessionId

if TYPE_CHECKING:
    from agents.usage import Usage

_REMEMBERED = 1_000
_MAX_NAME = 255


def current_trace() -> tuple[str | None, str | None]:
    """Return the ids of the SDK's current trace and span; None for each that does not exist."""
    agents = sys.modules.get("agents")
    if agents is None:
        return None, None
    trace, span = agents.get_current_trace(), agents.get_current_span()
    trace_id = span.trace_id if trace is None and span is not None else trace and trace.trace_id
    return usable_name(trace_id), usable_name(span and span.span_id)


def usable_name(value: object) -> str | None:
    """Return ``value`` as a name that every database can keep, cut to 255 characters.

    Returns None if ``value`` is not such a name.
    """
    if not isinstance(value, str) or value in ("", "no-op"):
        return None
    return None if text_problem(value) else value[:_MAX_NAME]


async def recorded_usage(
    view: Scope, stream: StreamKey, connection: AsyncConnection | None
) -> list[dict[str, Any]]:
    """Return the data of the session's latest events about usage, the last one first.

    Args:
        view: The scope of the principal that asks.
        stream: The session.
        connection: Read in this transaction of the caller's.
    """
    log = view.database.tables.events
    stream_id: ColumnElement[str] = bindparam("stream_id", type_=SessionId)
    query = (
        select(log.c.data)
        .where(
            log.c.stream_id == stream_id,
            log.c.stream_type == "session",
            log.c.type == USAGE_RECORDED,
            *view.reads.ownership.of_session(stream_id),
            *view.reads.ownership.since(log),
        )
        .order_by(log.c.version.desc())
        .limit(_REMEMBERED)
    )
    statement = view.database.dialect.compile(query)
    asked = statement(stream_id=stream.stream_id, **view.owner)
    rows = await view.database.fetch(asked, view.limits, connection)
    return [orjson.loads(row[0]) for row in rows]


def resumed_run(usage: Usage, events: Iterable[dict[str, Any]]) -> tuple[str, UsageTotals] | None:
    """Return the run that ``usage`` continues and what is recorded of it; None if there is none."""
    entries = [UsageTotals.of_request(entry) for entry in usage.request_usage_entries]
    prefixes = {_tokens(sums) for sums in accumulate(entries, UsageTotals.plus)}
    prefixes.add(_tokens(NOTHING))
    prefixes.add(_tokens(UsageTotals.of(usage)))
    trace_id, _ = current_trace()
    found = [
        (trace_id is not None and event["trace_id"] == trace_id, reached, event["run_id"])
        for event in events
        if (reached := UsageTotals.read(event["reached"])).requests <= (usage.requests or 0)
        and _tokens(reached) in prefixes
    ]
    if not found:
        return None
    _, reached, run_id = max(
        found, key=lambda each: (each[0], each[1].requests, each[1].total_tokens)
    )
    return run_id, reached


def _tokens(totals: UsageTotals) -> UsageTotals:
    """Return ``totals`` with 0 requests, because requests that used no tokens are not listed."""
    return UsageTotals(**{**asdict(totals), "requests": 0})
