"""The ledger of a run's usage, which makes sure that each token is recorded once.

The Runner passes its wrapper to the session; ``wrapper.usage`` is what the run has used so far. The
session records what the run has used since the last record. A `UsageLedger` on the ``Usage`` object
keeps which part of it is recorded. Within a process, this is exact:

- One transaction. New usage is recorded in the transaction that adds the items: both or neither.
- Retries. The event to record is fixed, with its event id, before the first attempt. If an attempt
  ends with an error, a cancellation or a lost connection, the next call repeats it.
- A transaction of the caller's. The caller may roll it back, so an event that was recorded in it is
  submitted again when it has ended.
- Runs at the same time, also on the same session object. Each has a ``Usage`` of its own.
- Rewinds, failed attempts, cleared sessions. Used tokens stay recorded.
- An agent as a tool. It shares the ``Usage`` and the run id of the run that called it. What that
  run used before is still recorded in that run's own session and turn.
- ``to_state()``. Each copy of a ``Usage`` has a ledger of its own, which begins with what was
  recorded or being recorded then. Two runs from one state both count, their common part once.

If a state came from JSON, its ``Usage`` has numbers but no ledger, so the run has to be found. Each
event says what its run had reached by then, and a ``Usage`` lists its requests one by one. A run
matches if its event reached exactly the sum of the first requests of this ``Usage``. Of several,
one of the same trace comes first, then the one that reached most. No trace is required, because
tracing may be off. So recorded usage is neither counted again nor lost, with these exceptions:

- Two runs of a session began with requests of exactly the same tokens, and the later one has
  numbers but no ledger though it is not resumed (such as `store_run_usage` for a run that never
  used the session). Then the later run's first requests are taken for those of the earlier run.
- A state was resumed twice, and the second time the session is first called after as many tokens
  as the first time. (The Runner calls it before the first request, to save the tool's output.)
- More than `resumed_runs._REMEMBERED` events lie between. Then the usage before counts again.

A wrapper that an app passes to several runs counts as one run.
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
    """The user message that caused a use of tokens, and the session that records the usage.

    Attributes:
        log: The event log.
        stream: The stream of the session.
        access: The principal on whose behalf the usage is recorded.
        user_message_id: The row id of the message, if it is known.
        message: The message, if it is only being added now.
    """

    log: EventLog
    stream: StreamKey
    access: Principal
    user_message_id: int | None = None
    message: Message | None = None


@dataclass(frozen=True)
class UsageShare:
    """A part of a run's usage, with the response, model and agent if they are known."""

    totals: UsageTotals
    response_id: str | None = None
    model: str | None = None
    agent: str | None = None


@dataclass(eq=False)
class Entry:
    """A usage event to record. The event keeps its id until it is recorded.

    Attributes:
        log: The event log.
        command: The command that records the event.
        tried: Whether an attempt was made; its outcome may be unknown.
        in_hand: Whether a call is recording the event together with items.
        transaction: The caller's transaction in which the event was recorded, if it was in one.
        recorded: Whether the event is recorded for good.
    """

    log: EventLog
    command: RecordUsage
    tried: bool = False
    in_hand: bool = False
    transaction: Any = None
    recorded: bool = False

    @property
    def is_due(self) -> bool:
        """Return whether the event is not recorded, not even in a transaction still open."""
        within = self.transaction is not None and self.transaction.is_active
        return not self.recorded and not within

    def try_now(self) -> RecordUsage:
        """Return the command for an attempt, and note that the attempt is made."""
        self.command.may_be_retry = self.tried
        self.tried = True
        return self.command

    def goes_with(self, command: AddItems, log: EventLog) -> bool:
        """Return whether ``command`` can record the event: same session, same principal."""
        own = self.command
        same = own.stream == command.stream and own.access == command.access
        return same and self.log is log and self.is_due and not self.in_hand

    def attribute_to(self, user_message_id: int | None, message: Message | None) -> None:
        """Attribute the event to another message if a rollback may have removed its own.

        If the transaction was committed after all, the event that it recorded stays as it is.
        """
        if self.transaction is None and self.command.message in (None, message):
            return
        self.command.message = message
        facts = {**self.command.fact.data, "user_message_id": user_message_id}
        self.command.fact = EventData(USAGE_RECORDED, facts)


@dataclass(eq=False)
class UsageLedger:
    """The account of one ``Usage``: which part of it is recorded.

    Attributes:
        run_id: The id of the run; None until it is known if the run is a resumed one.
        reached: The sums that are recorded, or about to be.
        shares: The responses that hooks have reported, until they are entered.
        cause: The user message that is being answered.
        causes: The last such message in each session.
        finish: Records the rest in the session that the run uses; None until it uses one.
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
        """Copy the ledger with its `Usage`, for a state; from then on both change separately."""
        return replace(
            self, shares=[*self.shares], causes={**self.causes}, _entries=[*self._entries]
        )

    def __reduce__(self) -> Any:
        """Leave the ledger out of a pickle: a pickled ``Usage`` is like one from JSON."""
        return _nothing, ()

    async def identify(
        self, usage: Usage, cause: UsageCause, connection: AsyncConnection | None = None
    ) -> None:
        """Find out which run this is, if that is not known yet."""
        if self.run_id is not None:
            return
        view = Scope(cause.log.database, cause.access)
        events = await recorded_usage(view, cause.stream, connection)
        if self.run_id is None:  # no other task found it meanwhile
            run_id, self.reached = resumed_run(usage, events) or (new_event_id(), NOTHING)
            self.run_id = run_id

    def owes(self, usage: Usage) -> bool:
        """Return whether a part of ``usage`` may not be recorded yet."""
        return any(entry.is_due for entry in self._entries) or UsageTotals.of(usage) != self.reached

    def enter(self, usage: Usage, cause: UsageCause) -> None:
        """Enter what was used since the last time, with ``cause`` as its cause."""
        rest = UsageTotals.of(usage).less(self.reached)
        for share in _divided(rest, self.shares):
            reached = self.reached.plus(share.totals)
            self._entries.append(Entry(cause.log, self._event(share, cause, reached)))
            self.reached = reached
        self.shares.clear()

    def begin(self, cause: UsageCause) -> None:
        """Set the user message that the run answers from now on."""
        self.cause = self.causes[cause.log, cause.stream] = cause

    def take(self, command: AddItems, cause: UsageCause) -> list[Entry]:
        """Let ``command`` record the entries that it can; return them. `put_back` must follow."""
        taken = [entry for entry in self._entries if entry.goes_with(command, cause.log)]
        for entry in taken:
            entry.in_hand = True
            entry.attribute_to(cause.user_message_id, cause.message)
        command.companions = [entry.try_now() for entry in taken]
        return taken

    def put_back(
        self, taken: Sequence[Entry], *, recorded: bool = False, transaction: Any = None
    ) -> None:
        """Note the outcome of the entries that `take` returned.

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
        """Record all entries.

        Args:
            in_hand: Include the entries that other calls are recording with their items.

        Raises:
            AppendRejected: An entry cannot be recorded any more, because its session belongs to
                another user by now. The rest is recorded.
            EventMetaError: An entry could not be recorded. The next call tries it again.
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
    """Return the ledger of ``usage``; attach a new one if it has none."""
    ledger: UsageLedger | None = vars(usage).get(_ATTRIBUTE)
    if ledger is None:
        ledger = UsageLedger(None if UsageTotals.of(usage) else new_event_id())
        setattr(usage, _ATTRIBUTE, ledger)
    return ledger


def _nothing() -> None:
    return None


def _divided(rest: UsageTotals, shares: Iterable[UsageShare]) -> Iterator[UsageShare]:
    """Yield the shares of known responses that ``rest`` covers, then what is left of it."""
    for share in shares:
        if share.totals and rest.covers(share.totals):
            rest = rest.less(share.totals)
            yield share
    if rest:
        yield UsageShare(rest)
