"""The statements that read conversations turn by turn, compiled once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    union_all,
)

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.queries.ownership import OwnerFilter
from projections import AnySelect
from projections.items import TOOL_ITEMS, Part, is_one_of
from projections.types import BigInt

_NO: ColumnElement[int] = literal_column("0")
_YES: ColumnElement[int] = literal_column("1")
_AFTER: ColumnElement[int] = bindparam("after", type_=BigInt)


@dataclass(frozen=True)
class ConversationStatements:
    """What is read of the structured tables."""

    messages: Table
    conversation: Table
    tool_calls: Table
    dialect: Dialect
    ownership: OwnerFilter

    @cached_property
    def turns(self) -> Statement:
        """``session_id``, ``after``, ``limit`` → the turns after that one, in order.

        For each turn first ``turn, id, content, created_at`` of the user message; then its ``turn``
        with ``run_id, messages, tool_calls``: a row for each run that took part.

        The two are not joined, for SQLite would try all pairs of them.
        """
        said = self.conversation.c
        page = (
            self.ownership.within(
                select(said.turn, said.id, said.content, said.created_at), said.session_id
            )
            .where(said.role == "user", said.turn > _AFTER)
            .order_by(said.turn)
            .limit(bindparam("limit", type_=BigInteger()))
            .cte("page")
        )
        run = self._runs(page).subquery("run").c
        no_run = (null().label("run_id"), _NO.label("messages"), _NO.label("tool_calls"))
        rows = union_all(
            select(*page.c, *no_run, _NO.label("first_id")),
            select(
                run.turn,
                null(),
                null(),
                null(),
                *run["run_id", "messages", "tool_calls"],
                run.first_id,
            ),
        ).subquery("rows")
        columns = [column for column in rows.c if column.name != "first_id"]
        return self.dialect.compile(select(*columns).order_by(rows.c.turn, rows.c.first_id))

    def _runs(self, page: CTE) -> AnySelect:
        """How many messages and tool calls each run added to each turn of the page."""
        said, calls = self.conversation.c, self.tool_calls.c
        last = select(func.max(page.c.turn)).scalar_subquery()

        def within(query: AnySelect, row: Any) -> AnySelect:
            of_page = (row.turn > _AFTER, row.turn <= last)
            return self.ownership.within(query, row.session_id).where(*of_page)

        message = case((said.role.is_not(None), 1), else_=0)
        use = case((_is_call(calls.type), 1), else_=0)
        added = union_all(
            within(
                select(
                    *(said.turn, said.run_id, said.id),
                    message.label("messages"),
                    _NO.label("tool_calls"),
                ),
                said,
            ),
            within(select(calls.turn, calls.run_id, calls.id, _NO, use), calls),
        ).subquery("added")
        return select(
            added.c.turn,
            added.c.run_id,
            func.sum(added.c.messages, type_=BigInt).label("messages"),
            func.sum(added.c.tool_calls, type_=BigInt).label("tool_calls"),
            func.min(added.c.id).label("first_id"),
        ).group_by(added.c.turn, added.c.run_id)

    @cached_property
    def entries(self) -> Statement:
        """``session_id`` → all that it holds, in order, each output for itself.

        ``id, turn, type, role, tool_name, call_id, status, run_id, completes``. An output that
        completes a call has no turn, and the type of its call.
        """
        said, calls, raw = self.conversation.c, self.tool_calls.c, self.messages.c
        is_search = or_(calls.type == "tool_search_call", calls.type == "tool_search_output")
        of_output = case((is_search, calls.tool_name))
        named = case((_is_call(calls.type), calls.tool_name), else_=of_output).label("tool_name")
        called = select(
            *(calls.created_at, calls.id, calls.turn, calls.type, null().label("role"), named),
            *(calls.call_id, calls.status, calls.run_id, _NO.label("completes")),
        )
        completed = select(
            *(raw.created_at, raw.id, null(), calls.type, null(), of_output),
            *(calls.call_id, null(), null(), _YES),
        ).where(raw.id == calls.output_raw_event_id)
        spoken = select(
            *(said.created_at, said.id, said.turn, said.type),
            *(said.role, null(), null(), null(), said.run_id, _NO),
        )
        entry = union_all(
            self.ownership.within(called, calls.session_id),
            self.ownership.within(completed, calls.session_id),
            self.ownership.within(spoken, said.session_id),
        ).subquery("entry")
        columns = [column for column in entry.c if column.name != "created_at"]
        return self.dialect.compile(select(*columns).order_by(entry.c.created_at, entry.c.id))

    @cached_property
    def tool_usage(self) -> Statement:
        """``session_id`` → ``tool_name, turn`` and how often the tool was called in the turn."""
        calls = self.tool_calls.c
        name = func.coalesce(calls.tool_name, calls.type).label("tool_name")
        # The output of a search for tools may be all there is of it.
        used = or_(_is_call(calls.type), calls.type == "tool_search_output")
        query = self.ownership.within(select(name, calls.turn, func.count()), calls.session_id)
        return self.dialect.compile(query.where(used).group_by(name, calls.turn))


def _is_call(kind: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a row of this type is a call, and not an output that has none."""
    return not_(is_one_of(kind, _OUTPUTS))


_OUTPUTS = [kind for kind, item in TOOL_ITEMS.items() if item.part is Part.OUTPUT]
