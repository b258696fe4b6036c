"""The conversation turn by turn, read from the structured tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from eventmeta.core.errors import StructuredMetadataOff
from eventmeta.core.validation import check_count
from eventmeta.dialects.statement import Row
from eventmeta.queries.conversation_statements import ConversationStatements
from eventmeta.queries.statements import NO_LIMIT
from eventmeta.session.handle import SessionHandle
from projections.items import HANDOFF, UNKNOWN


@dataclass(frozen=True)
class Turn:
    """A user message and the items that follow it, up to the next user message.

    Attributes:
        turn: The number of the turn; the first user message of the session begins turn 1.
        user_message_id: The row id of the user message.
        content: The content of the user message: a text, or a list of parts.
        created_at: The time of the user message in ``agent_messages``: in UTC, without a zone, and
            not before any earlier item of the session.
        run_ids: The runs that took part, in order. Only runs that are known are listed.
        messages: The number of messages, the user's own included.
        tool_calls: The number of tool calls.
    """

    turn: int
    user_message_id: int
    content: Any
    created_at: datetime
    run_ids: tuple[str, ...]
    messages: int
    tool_calls: int


class SessionConversation(SessionHandle):
    """A session that can be read turn by turn. This requires ``structured_metadata=True``."""

    async def get_turns(self, limit: int | None = None, after: int | None = None) -> list[Turn]:
        """Return the turns of the conversation in order.

        Args:
            limit: The maximum number of turns; None for all.
            after: Only turns after this one: the ``turn`` of the last one seen.

        Raises:
            StructuredMetadataOff: The session keeps no structured tables.
        """
        page = {
            "limit": NO_LIMIT if limit is None else check_count("limit", limit),
            "after": 0 if after is None else check_count("after", after),
        }
        await self._connected()
        statements = self._statements("get_turns()")
        rows = await self._view.fetch(statements.turns, session_id=self.session_id, **page)
        return [_turn(*of_turn) for _, of_turn in groupby(rows, itemgetter(0))]

    async def get_conversation_by_turns(self) -> dict[int, list[dict[str, Any]]]:
        """Return the items of each turn, by the number of the turn.

        Number 0 holds the items before the first user message. Each item is a dict, in order, with
        the keys of ``AdvancedSQLiteSession``: ``type`` (``"user"`` and ``"assistant"`` for their
        messages) and ``tool_name`` (None for outputs, except those of searches for tools). Further
        keys are ``raw_event_id``, the id of the item's row in ``agent_messages``; ``call_id`` of
        calls and outputs; ``status`` of calls; and ``run_id``.

        Raises:
            StructuredMetadataOff: The session keeps no structured tables.
        """
        await self._connected()
        statements = self._statements("get_conversation_by_turns()")
        rows = await self._view.fetch(statements.entries, session_id=self.session_id)
        return _by_turns(rows)

    async def get_tool_usage(self) -> list[tuple[str, int, int]]:
        """Return how often each tool was called in each turn: ``(tool_name, usage_count, turn)``.

        Raises:
            StructuredMetadataOff: The session keeps no structured tables.
        """
        await self._connected()
        statements = self._statements("get_tool_usage()")
        rows = await self._view.fetch(statements.tool_usage, session_id=self.session_id)
        used = [(name, count, turn) for name, turn, count in rows]
        return sorted(used, key=itemgetter(2, 0))

    def _statements(self, call: str) -> ConversationStatements:
        statements = self._view.reads.conversation
        if statements is None:
            raise StructuredMetadataOff(call)
        return statements


def _turn(message: Row, *runs: Row) -> Turn:
    """Return the turn that begins with ``message``; each of ``runs`` counts one run's items."""
    number, message_id, content, created_at = message[:4]
    return Turn(
        turn=number,
        user_message_id=message_id,
        content=None if content is None else json.loads(content),
        created_at=created_at,
        run_ids=tuple(row[4] for row in runs if row[4] is not None),
        messages=sum(int(row[5]) for row in runs),
        tool_calls=sum(int(row[6]) for row in runs),
    )


def _by_turns(rows: Iterable[Row]) -> dict[int, list[dict[str, Any]]]:
    turns: dict[int, list[dict[str, Any]]] = {}
    current = 0
    for raw_event_id, turn, kind, role, tool_name, call_id, status, run_id, completes in rows:
        current = current if turn is None else turn
        turns.setdefault(current, []).append(
            {
                "type": _upstream_type(kind, role, completes=completes),
                "tool_name": tool_name,
                "raw_event_id": raw_event_id,
                "call_id": call_id,
                "status": status,
                "run_id": run_id,
            }
        )
    return turns


def _upstream_type(kind: str, role: str | None, *, completes: bool) -> str:
    """Return the type that ``AdvancedSQLiteSession`` gives to an item."""
    if role in ("user", "assistant"):
        return role
    name = {HANDOFF: "function_call", UNKNOWN: "other"}.get(kind, kind)
    return _OUTPUTS.get(name, f"{name}_output") if completes else name


_OUTPUTS = {
    "tool_search_call": "tool_search_output",
    "mcp_approval_request": "mcp_approval_response",
}
