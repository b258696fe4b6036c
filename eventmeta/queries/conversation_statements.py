"""The statements that read conversations turn by turn, compiled at first use."""

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
    """The statements that read the structured tables.

    Each property says what the statement does, then its parameters → the columns of its rows.
    """

    messages: Table
    conversation: Table
    tool_calls: Table
    dialect: Dialect
    ownership: OwnerFilter

    @cached_property
    def turns(self) -> Statement:
        """Select the turns after one, in order: ``session_id``, ``after``, ``limit`` → rows.

        The first row of a turn has ``turn, id, content, created_at`` of the user message. Then
        comes a row for each run that took part: ``turn`` and ``run_id, messages, tool_calls``.

        Messages and runs are not joined, as SQLite would try all pairs of them.
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
        """Return the query for how many messages and tool calls each run added to each turn."""
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
        """Select all entries of a session, in order, with a row of its own for each output.

        ``session_id`` → ``id, turn, type, role, tool_name, call_id, status, run_id, completes``. An
        output that completes a call has no turn, and has the type of its call.
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
        """Count the calls of each tool by turn: ``session_id`` → ``tool_name, turn``, count."""
        calls = self.tool_calls.c
        name = func.coalesce(calls.tool_name, calls.type).label("tool_name")
        # A search for tools may have only an output, and no call.
        used = or_(_is_call(calls.type), calls.type == "tool_search_output")
        query = self.ownership.within(select(name, calls.turn, func.count()), calls.session_id)
        return self.dialect.compile(query.where(used).group_by(name, calls.turn))


def _is_call(kind: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that a row of this type is a call, and not an output without one."""
    return not_(is_one_of(kind, _OUTPUTS))


_OUTPUTS = [kind for kind, item in TOOL_ITEMS.items() if item.part is Part.OUTPUT]
