"""What runs use, recorded as it is used: each token once.

The Runner passes its wrapper to the session, whose ``usage`` is what the run has used so far. The
session records what has come to it since it last looked. What it has recorded is kept beside the
numbers themselves, in a `Ledger` on the ``Usage`` object.

Exact, within a process:

- Retries. What is to be recorded is fixed, with its event id, before the first attempt; whatever
  becomes of that (an error, a cancellation, a lost connection), the next call repeats it as it is.
- Runs at the same time, also on the same session object: each has a ``Usage`` of its own.
- Rewinds, failed attempts, cleared sessions: what was used stays used.
- An agent as a tool: it shares the ``Usage`` of the run that called it, and so its run id. What
  that run used before is still recorded in that run's own session and turn.
- ``to_state()``: each copy of a ``Usage`` has a ledger of its own, which begins with what was
  recorded or under way at that time. Two runs from one state both count, what they share once.

Found out, where a state came from JSON. Such a ``Usage`` has numbers, but no ledger. Every event
says what its run had reached by then, and a ``Usage`` lists its requests one by one. The run is
resumed whose event reached exactly what the first requests of this ``Usage`` sum up to: of those
the longest, one of the same trace first. A trace is not needed, for tracing may be off. So a run
that was recorded is neither counted again nor lost, unless

- two runs of a session began with requests of exactly the same tokens, and the later one comes
  with numbers but without a ledger, and is no resumed one (such as `store_run_usage` for a run that
  never saw the session): the later one's first requests are then taken for the earlier one's;
- a state was resumed twice, and the second time the session is first called after as many tokens
  as the first time. (The Runner calls it before the first request: it saves the tool's output.)
- more than `_REMEMBERED` events came between: what had been used until then counts again.

A wrapper that an app hands to several runs is one run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import ColumnElement, bindparam, select

from eventmeta.access import Access
from eventmeta.codec import text_problem
from eventmeta.commands import Append, Fact, StreamKey
from eventmeta.database import Database
from eventmeta.errors import AppendRejected
from eventmeta.events import USAGE_RECORDED
from eventmeta.identifiers import new_event_id
from eventmeta.options import command_fields
from eventmeta.usage import NOTHING, UsageTotals
from eventmeta.view import View
from projections.types import SessionId

if TYPE_CHECKING:
    from agents.usage import Usage

_ATTRIBUTE = "_eventmeta_ledger"
_REMEMBERED = 1_000
_MAX_NAME = 255


@dataclass(frozen=True)
class Cause:
    """The user message that caused a use of tokens, and where that is recorded."""

    database: Database
    stream: StreamKey
    access: Access
    user_message_id: int | None


@dataclass(frozen=True)
class Share:
    """A part of what was used, and what is known of it."""

    totals: UsageTotals
    response_id: str | None = None
    model: str | None = None
    agent: str | None = None


@dataclass(eq=False)
class _Entry:
    """An event to record. It stays the same until it is recorded."""

    database: Database
    command: Append
    tried: bool = False

    async def record(self) -> None:
        self.command.may_be_recorded = self.tried
        self.tried = True
        await self.database.submit(self.command)


@dataclass(eq=False)
class Ledger:
    """What is recorded of one ``Usage``.

    Attributes:
        run_id: The run; None until it is known whether it is a resumed one.
        reached: The sums that are recorded, or about to be.
        shares: The responses of which hooks told, until they are recorded.
        cause: The user message that is being answered.
        causes: The last one in each session.
    """

    run_id: str | None
    reached: UsageTotals = NOTHING
    shares: list[Share] = field(default_factory=list[Share])
    cause: Cause | None = None
    causes: dict[tuple[Database, StreamKey], Cause] = field(
        default_factory=dict[tuple[Database, StreamKey], Cause]
    )
    _entries: list[_Entry] = field(default_factory=list[_Entry])

    def __deepcopy__(self, memo: Any) -> Ledger:
        """As `Usage` is copied for a state: from now on both go their own ways."""
        return Ledger(
            self.run_id,
            self.reached,
            [*self.shares],
            self.cause,
            {**self.causes},
            [*self._entries],
        )

    def __reduce__(self) -> Any:
        """It does not leave the process: a pickled ``Usage`` is like one from JSON."""
        return _nothing, ()

    async def identify(self, usage: Usage, cause: Cause) -> None:
        """Learn which run this is, if that is not known yet."""
        if self.run_id is not None:
            return
        events = await _recorded(cause)
        if self.run_id is None:  # nobody else did meanwhile
            run_id, self.reached = _resumed(usage, events) or (new_event_id(), NOTHING)
            self.run_id = run_id

    def enter(self, usage: Usage, cause: Cause) -> None:
        """Take down what was used since the last time, because of ``cause``; see `settle`."""
        rest = UsageTotals.of(usage).less(self.reached)
        for share in _divided(rest, self.shares):
            reached = self.reached.plus(share.totals)
            self._entries.append(_Entry(cause.database, self._event(share, cause, reached)))
            self.reached = reached
        self.shares.clear()

    def begin(self, cause: Cause) -> None:
        """From now on this is answered."""
        self.cause = self.causes[cause.database, cause.stream] = cause

    async def settle(self) -> None:
        """Record all that was entered.

        Raises:
            AppendRejected: Part of it has no place any more: its session belongs to someone else by
                now. The rest is recorded.
            EventMetaError: It could not be. The next call will try it again.
        """
        rejected: AppendRejected | None = None
        for entry in list(self._entries):
            try:
                await entry.record()
            except AppendRejected as error:
                rejected = error
            if entry in self._entries:
                self._entries.remove(entry)
        if rejected is not None:
            raise rejected

    def _event(self, share: Share, cause: Cause, reached: UsageTotals) -> Append:
        trace_id, span_id = current_trace()
        facts = {
            "run_id": self.run_id,
            "response_id": share.response_id,
            "model": share.model,
            "agent": share.agent,
            **share.totals.facts,
            "user_message_id": cause.user_message_id,
            "user_id": cause.access.user_id,
            "trace_id": trace_id,
            "span_id": span_id,
            "reached": asdict(reached),
        }
        return Append(
            stream=cause.stream,
            fact=Fact(USAGE_RECORDED, facts),
            **command_fields({}, cause.access),
        )


def ledger_of(usage: Usage) -> Ledger:
    """The ledger of ``usage``; a new one if it has none."""
    ledger: Ledger | None = vars(usage).get(_ATTRIBUTE)
    if ledger is None:
        ledger = Ledger(None if UsageTotals.of(usage) else new_event_id())
        setattr(usage, _ATTRIBUTE, ledger)
    return ledger


def current_trace() -> tuple[str | None, str | None]:
    """The ids of the current trace and span of the SDK, where it traces."""
    agents = sys.modules.get("agents")
    if agents is None:
        return None, None
    trace, span = agents.get_current_trace(), agents.get_current_span()
    trace_id = span.trace_id if trace is None and span is not None else trace and trace.trace_id
    return usable_name(trace_id), usable_name(span and span.span_id)


def usable_name(value: object) -> str | None:
    """``value``, if it is a name that every database can keep, as far as they do."""
    if not isinstance(value, str) or value in ("", "no-op"):
        return None
    return None if text_problem(value) else value[:_MAX_NAME]


def _nothing() -> None:
    return None


def _divided(rest: UsageTotals, shares: Iterable[Share]) -> Iterator[Share]:
    """``rest`` by responses as far as they are known, and what is left of it."""
    for share in shares:
        if share.totals and rest.covers(share.totals):
            rest = rest.less(share.totals)
            yield share
    if rest:
        yield Share(rest)


async def _recorded(cause: Cause) -> list[dict[str, Any]]:
    """The latest events of the session, last first."""
    view = View(cause.database, cause.access)
    log = cause.database.tables.events
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
    read = cause.database.log.read
    rows = await read(query, stream_id=cause.stream.stream_id, **view.owner)
    return [orjson.loads(row[0]) for row in rows]


def _resumed(usage: Usage, events: Iterable[dict[str, Any]]) -> tuple[str, UsageTotals] | None:
    """The run that ``usage`` goes on with, and what is recorded of it."""
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
    """Without the requests, for those that used no tokens are not listed one by one."""
    return UsageTotals(**{**asdict(totals), "requests": 0})
