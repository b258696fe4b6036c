"""The tokens that a session's runs use: recording them, and returning their sums."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.canonical_json import dump_canonical, parse
from eventmeta.core.errors import EventMetaError, InvalidInput
from eventmeta.core.events import RecordedEvent
from eventmeta.core.principal import Principal
from eventmeta.core.usage import NOTHING, UsageTotals
from eventmeta.core.validation import check_run_id
from eventmeta.core.write_order import Turn
from eventmeta.log.commands import AddItems, Message
from eventmeta.log.commands.options import WriteOptions
from eventmeta.log.event_log import own_connection
from eventmeta.queries.usage import check_structured, check_turn, session_usage, turn_usage
from eventmeta.session.handle import SessionHandle
from eventmeta.session.resumed_runs import current_trace, usable_name
from eventmeta.session.turns import is_user_message
from eventmeta.session.usage_ledger import UsageCause, UsageLedger, UsageShare, ledger_of

if TYPE_CHECKING:
    from agents import RunContextWrapper, RunErrorDetails
    from agents.items import ModelResponse
    from agents.result import RunResultBase
    from agents.usage import Usage

_logger = logging.getLogger("eventmeta")


class SessionUsage(SessionHandle):
    """A session that records the tokens its runs use."""

    async def store_run_usage(self, result: RunResultBase | RunErrorDetails) -> None:
        """Record what a run has used, except what is recorded already.

        The usage of a run that keeps its items in this session is recorded with the items. Such a
        run needs this call only if it ended without adding items after its last request, for
        example by an exception (pass the exception's ``run_data``), and if it was not inside
        ``async with UsageHooks()``. Usage that is recorded already is not recorded twice.

        Args:
            result: The result of the run, in the process in which the run took place.

        Raises:
            InvalidInput: ``result`` is not the result of a run.
            StructuredMetadataOff: The table of used tokens is not kept.
            EventMetaError: The usage could not be recorded; it is safe to call again.
        """
        await check_structured(self._log.database, "store_run_usage()")
        wrapper, responses = (
            getattr(result, name, None) for name in ("context_wrapper", "raw_responses")
        )
        if wrapper is None or responses is None:
            raise InvalidInput(
                f"the result is a {type(result).__name__}: give what Runner.run() returned, or the "
                "run_data of the error that it raised"
            )
        await self._finish(wrapper.usage, responses)

    async def get_usage(self, *, turn: int | None = None, run_id: str | None = None) -> UsageTotals:
        """Return what the session's runs have used.

        Usage for turns and items that do not exist any more is included.

        Args:
            turn: Only usage in this turn, which must still exist.
            run_id: Only usage by this run.

        Raises:
            InvalidInput: ``turn`` is not the number of a turn, or ``run_id`` is not a run's id.
            StructuredMetadataOff: The table of used tokens is not kept.
        """
        await check_structured(self._log.database, "get_usage()")
        check_turn(turn)
        if run_id is not None:
            check_run_id(run_id)
        await self._connected()
        return await session_usage(self._view, self.session_id, turn=turn, run_id=run_id)

    async def get_turn_usage(
        self, user_turn_number: int | None = None
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Return what each turn has used, in the form of ``AdvancedSQLiteSession``.

        Args:
            user_turn_number: The number of one turn; None for all turns that have used tokens.

        Returns:
            For one turn, a dict with ``requests``, ``input_tokens``, ``output_tokens``,
            ``total_tokens``, ``input_tokens_details`` and ``output_tokens_details``. The dict is
            empty if the turn has used nothing. For all turns, a list of these dicts in order, each
            with ``user_turn_number`` besides.

        Raises:
            StructuredMetadataOff: The table of used tokens is not kept.
        """
        await check_structured(self._log.database, "get_turn_usage()")
        check_turn(user_turn_number)
        await self._connected()
        found = await turn_usage(self._view, self.session_id)
        details = {turn: _with_details(totals) for turn, totals in sorted(found.items())}
        if user_turn_number is not None:
            return details.get(user_turn_number, {})
        return [{"user_turn_number": turn, **usage} for turn, usage in details.items()]

    # --- Capture --------------------------------------------------------------------------------

    async def _notice(self, wrapper: RunContextWrapper[Any] | None) -> UsageLedger | None:
        """Return the ledger of a run, attached at the run's first call, before it has used tokens.

        Returns None if there is no run, or if the table of used tokens is not kept.
        """
        if wrapper is None:
            return None
        if self._log.database.tables.names.structured_metadata is None:
            await self._connected()  # which reads the setting from the database
        if self._log.database.tables.usage is None:
            return None
        ledger = ledger_of(wrapper.usage)
        ledger.finish = ledger.finish or self._finish
        return ledger

    async def _add(
        self,
        command: AddItems,
        items: Sequence[Any],
        wrapper: RunContextWrapper[Any] | None,
        options: WriteOptions,
        turn: Turn | None = None,
    ) -> RecordedEvent:
        """Add items and, in the same transaction, record what their run has used so far."""
        ledger = await self._notice(wrapper)
        if wrapper is None or ledger is None:
            added = await self._submit(command, options, turn)
            assert added is not None
            return added
        if turn is None and options.get("connection") is None:
            async with self._turn() as turn:
                return await self._add(command, items, wrapper, options, turn)
        connection = await own_connection(options.get("connection"))
        if connection is None:
            await self._connected()
        await ledger.identify(wrapper.usage, self._cause(command.access), connection)
        _link(command, ledger)
        cause = await self._enter(ledger, wrapper.usage, command, items, connection)
        taken = ledger.take(command, cause)
        try:
            added = await self._log.submit(command, connection, self._limits, turn)
        except BaseException:
            ledger.put_back(taken)
            raise
        assert added is not None
        if connection is not None:
            transaction = (
                connection.sync_connection and connection.sync_connection.get_transaction()
            )
            ledger.put_back(taken, transaction=transaction)
            if cause.message is not None:  # the message exists only if the caller commits
                ledger.causes.pop((self._log, self._stream), None)
            return added
        ledger.put_back(taken, recorded=True)
        if cause.message is not None:
            message_id = added.data["item_ids"][cause.message.place]
            ledger.begin(self._cause(command.access, message_id))
        elif cause.user_message_id is not None:
            ledger.begin(cause)
        await self._settle(ledger)
        return added

    async def _enter(
        self,
        ledger: UsageLedger,
        usage: Usage,
        command: AddItems,
        items: Sequence[Any],
        connection: AsyncConnection | None,
    ) -> UsageCause:
        """Enter what the run has used, and return the user message that is being answered."""
        said = [n for n, item in enumerate(items) if is_user_message(item)]
        known = ledger.causes.get((self._log, self._stream))
        if said:
            cause = self._cause(command.access, message=Message(command, said[-1]))
        elif known is None and UsageTotals.of(usage) != ledger.reached:
            cause = await self._last_cause(command.access, connection)
        else:
            cause = known or self._cause(command.access)
        cause = replace(cause, access=command.access)
        # No tokens were used yet to answer a message at the end; they answered the one before.
        unanswered = bool(said) and said[-1] == len(items) - 1
        before = ledger.cause if unanswered else None
        if before is not None and before.stream == cause.stream:
            before = replace(before, access=command.access)
        ledger.enter(usage, before or cause)
        return cause

    async def _settle(self, ledger: UsageLedger) -> None:
        """Record the usage that belongs to other sessions.

        The items are recorded already, so a failure here must not make the caller add them again.
        The failure is logged, and the missing usage is recorded with the next items.
        """
        try:
            await ledger.settle(in_hand=False)
        except EventMetaError as error:
            _logger.warning("the usage of run %s is not recorded yet: %s", ledger.run_id, error)

    async def _finish(self, usage: Usage, responses: Sequence[ModelResponse] = ()) -> None:
        """Record the part of a run's usage that is not recorded yet."""
        ledger = ledger_of(usage)
        if ledger.run_id is not None and not ledger.owes(usage):
            return
        await self._connected()
        cause = ledger.causes.get((self._log, self._stream)) or await self._last_cause(
            self._binding.access
        )
        await ledger.identify(usage, cause)
        if not ledger.shares:
            ledger.shares += _unrecorded(responses, ledger.reached)
        ledger.enter(usage, cause)
        await ledger.settle()

    def _cause(
        self,
        access: Principal,
        user_message_id: int | None = None,
        message: Message | None = None,
    ) -> UsageCause:
        return UsageCause(self._log, self._stream, access, user_message_id, message)

    async def _last_cause(
        self, access: Principal, connection: AsyncConnection | None = None
    ) -> UsageCause:
        """Return the last user message of the session, read by ``connection`` if that is given."""
        window = 64
        while True:
            rows = await self._last_rows(window, connection)
            for text, item_id in rows:
                if _says_user(text):
                    return self._cause(access, item_id)
            if len(rows) < window:
                return self._cause(access)
            window *= 8


def _link(command: AddItems, ledger: UsageLedger) -> None:
    """Add the ids of the run, its trace and its span to the context of ``command``."""
    trace_id, span_id = current_trace()
    about = {"run_id": ledger.run_id, "trace_id": trace_id, "span_id": span_id}
    known = {key: value for key, value in about.items() if value is not None}
    given: dict[str, Any] = parse(command.context) if command.context else {}
    command.context = dump_canonical({**given, **known}, "context")


def _says_user(text: str) -> bool:
    try:
        return is_user_message(json.loads(text))
    except json.JSONDecodeError:
        return False


def _unrecorded(responses: Sequence[ModelResponse], reached: UsageTotals) -> list[UsageShare]:
    """Return the last of ``responses`` if those before them sum up to what is recorded."""
    used = [UsageTotals.of(response.usage) for response in responses]
    sums = list(accumulate(used, UsageTotals.plus, initial=NOTHING))
    if reached not in sums:
        return []
    start = len(sums) - 1 - sums[::-1].index(reached)
    return [
        UsageShare(totals, usable_name(response.response_id))
        for response, totals in zip(responses[start:], used[start:], strict=True)
    ]


def _with_details(totals: UsageTotals) -> dict[str, Any]:
    facts = totals.facts
    for name in ("input_tokens_details", "output_tokens_details"):
        facts[name] = parse(facts[name])
    return facts
