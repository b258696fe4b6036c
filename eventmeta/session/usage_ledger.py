"""What runs use, recorded as it is used: each token once.

The Runner passes its wrapper to the session, whose ``usage`` is what the run has used so far. The
session records what has come to it since it last looked. What it has recorded is kept beside the
numbers themselves, in a `UsageLedger` on the ``Usage`` object.

Exact, within a process:

- Together. What is new is recorded in the transaction that adds the run's items: both or neither.
- Retries. What is to be recorded is fixed, with its event id, before the first attempt; whatever
  becomes of that (an error, a cancellation, a lost connection), the next call repeats it.
- A transaction of the caller's. What was recorded in one is asked for again when that has ended,
  for the caller may have rolled it back.
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
- more than `resumed_runs._REMEMBERED` events came between: what was used until then counts again.

A wrapper that an app hands to several runs is one run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.errors import AppendRejected
from eventmeta.core.events import USAGE_RECORDED, StreamKey
from eventmeta.core.principal import Principal
from eventmeta.core.usage import NOTHING, UsageTotals
from eventmeta.core.validation import new_event_id
from eventmeta.log.commands import AddItems, EventData, Message, RecordUsage
from eventmeta.log.commands.options import command_fields
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope
from eventmeta.session.resumed_runs import current_trace, recorded_usage, resumed_run

if TYPE_CHECKING:
    from agents.usage import Usage

_ATTRIBUTE = "_eventmeta_ledger"


@dataclass(frozen=True)
class UsageCause:
    """The user message that caused a use of tokens, and where that is recorded.

    Attributes:
        log: Where.
        stream: In which session.
        access: On whose behalf.
        user_message_id: The message, if it is known.
        message: The same, if it is added only now.
    """

    log: EventLog
    stream: StreamKey
    access: Principal
    user_message_id: int | None = None
    message: Message | None = None


@dataclass(frozen=True)
class UsageShare:
    """A part of what was used, and what is known of it."""

    totals: UsageTotals
    response_id: str | None = None
    model: str | None = None
    agent: str | None = None


@dataclass(eq=False)
class Entry:
    """An event to record. It keeps its id until it is recorded.

    Attributes:
        log: Where.
        command: What.
        tried: An attempt was made, whose outcome may be unknown.
        in_hand: A call is adding items with it.
        transaction: The caller's transaction in which it was recorded, if it was in one.
        recorded: It is recorded for good.
    """

    log: EventLog
    command: RecordUsage
    tried: bool = False
    in_hand: bool = False
    transaction: Any = None
    recorded: bool = False

    @property
    def is_due(self) -> bool:
        """Whether it is yet to be recorded, and not in a transaction that is still open."""
        within = self.transaction is not None and self.transaction.is_active
        return not self.recorded and not within

    def try_now(self) -> RecordUsage:
        """Return the command for an attempt."""
        self.command.may_be_recorded = self.tried
        self.tried = True
        return self.command

    def goes_with(self, command: AddItems, log: EventLog) -> bool:
        """Return whether it can be recorded with ``command``: in its session, for its user."""
        own = self.command
        same = own.stream == command.stream and own.access == command.access
        return same and self.log is log and self.is_due and not self.in_hand

    def attribute_to(self, user_message_id: int | None, message: Message | None) -> None:
        """Name another message than its own, if that may have gone with a transaction.

        If the transaction was committed after all, the event that it recorded stays as it is.
        """
        if self.transaction is None and self.command.message in (None, message):
            return
        self.command.message = message
        facts = {**self.command.fact.data, "user_message_id": user_message_id}
        self.command.fact = EventData(USAGE_RECORDED, facts)


@dataclass(eq=False)
class UsageLedger:
    """What is recorded of one ``Usage``.

    Attributes:
        run_id: The run; None until it is known whether it is a resumed one.
        reached: The sums that are recorded, or about to be.
        shares: The responses of which hooks told, until they are entered.
        cause: The user message that is being answered.
        causes: The last one in each session.
        finish: Records what is left, in the session that the run uses; None until it uses one.
    """

    run_id: str | None
    reached: UsageTotals = NOTHING
    shares: list[UsageShare] = field(default_factory=list[UsageShare])
    cause: UsageCause | None = None
    causes: dict[tuple[EventLog, StreamKey], UsageCause] = field(
        default_factory=dict[tuple[EventLog, StreamKey], UsageCause]
    )
    finish: Callable[[Usage], Awaitable[None]] | None = None
    _entries: list[Entry] = field(default_factory=list[Entry])

    def __deepcopy__(self, memo: Any) -> UsageLedger:
        """As `Usage` is copied for a state: from now on both go their own ways."""
        return replace(
            self, shares=[*self.shares], causes={**self.causes}, _entries=[*self._entries]
        )

    def __reduce__(self) -> Any:
        """It does not leave the process: a pickled ``Usage`` is like one from JSON."""
        return _nothing, ()

    async def identify(
        self, usage: Usage, cause: UsageCause, connection: AsyncConnection | None = None
    ) -> None:
        """Learn which run this is, if that is not known yet."""
        if self.run_id is not None:
            return
        view = Scope(cause.log.database, cause.access)
        events = await recorded_usage(view, cause.stream, connection)
        if self.run_id is None:  # nobody else did meanwhile
            run_id, self.reached = resumed_run(usage, events) or (new_event_id(), NOTHING)
            self.run_id = run_id

    def owes(self, usage: Usage) -> bool:
        """Return whether anything of ``usage`` may not be recorded yet."""
        return any(entry.is_due for entry in self._entries) or UsageTotals.of(usage) != self.reached

    def enter(self, usage: Usage, cause: UsageCause) -> None:
        """Take down what was used since the last time, because of ``cause``."""
        rest = UsageTotals.of(usage).less(self.reached)
        for share in _divided(rest, self.shares):
            reached = self.reached.plus(share.totals)
            self._entries.append(Entry(cause.log, self._event(share, cause, reached)))
            self.reached = reached
        self.shares.clear()

    def begin(self, cause: UsageCause) -> None:
        """From now on this is answered."""
        self.cause = self.causes[cause.log, cause.stream] = cause

    def take(self, command: AddItems, cause: UsageCause) -> list[Entry]:
        """Make what can be recorded with ``command`` its companions; `put_back` has to follow."""
        taken = [entry for entry in self._entries if entry.goes_with(command, cause.log)]
        for entry in taken:
            entry.in_hand = True
            entry.attribute_to(cause.user_message_id, cause.message)
        command.companions = [entry.try_now() for entry in taken]
        return taken

    def put_back(
        self, taken: Sequence[Entry], *, recorded: bool = False, transaction: Any = None
    ) -> None:
        """Take down what has become of the entries of `take`.

        Args:
            taken: The entries.
            recorded: Whether they are recorded for good.
            transaction: The caller's transaction in which they are recorded.
        """
        for entry in taken:
            entry.in_hand = False
            entry.recorded, entry.transaction = recorded, transaction
        self._entries = [entry for entry in self._entries if not entry.recorded]

    async def settle(self, *, in_hand: bool = True) -> None:
        """Record all that was entered.

        Args:
            in_hand: Also what other calls are recording with their items.

        Raises:
            AppendRejected: Part of it has no place any more: its session belongs to someone else by
                now. The rest is recorded.
            EventMetaError: It could not be. The next call will try it again.
        """
        rejected: AppendRejected | None = None
        for entry in list(self._entries):
            if not entry.is_due or (entry.in_hand and not in_hand):
                continue
            if entry.transaction is not None:
                entry.attribute_to(None, None)
            try:
                await entry.log.submit(entry.try_now())
            except AppendRejected as error:
                rejected = error
            entry.recorded = True
        self._entries = [entry for entry in self._entries if not entry.recorded]
        if rejected is not None:
            raise rejected

    def _event(self, share: UsageShare, cause: UsageCause, reached: UsageTotals) -> RecordUsage:
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
        return RecordUsage(
            stream=cause.stream,
            fact=EventData(USAGE_RECORDED, facts),
            message=cause.message,
            **command_fields("add_items()", {}, cause.access),
        )


def ledger_of(usage: Usage) -> UsageLedger:
    """The ledger of ``usage``; a new one if it has none."""
    ledger: UsageLedger | None = vars(usage).get(_ATTRIBUTE)
    if ledger is None:
        ledger = UsageLedger(None if UsageTotals.of(usage) else new_event_id())
        setattr(usage, _ATTRIBUTE, ledger)
    return ledger


def _nothing() -> None:
    return None


def _divided(rest: UsageTotals, shares: Iterable[UsageShare]) -> Iterator[UsageShare]:
    """``rest`` by responses as far as they are known, and what is left of it."""
    for share in shares:
        if share.totals and rest.covers(share.totals):
            rest = rest.less(share.totals)
            yield share
    if rest:
        yield UsageShare(rest)
