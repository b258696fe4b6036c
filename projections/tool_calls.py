"""The read model of the tool calls of a session, each with its output.

An output completes the latest call before it with the same ``call_id``. If there are several such
outputs, the first counts. Outputs without a call, and further outputs of a call, are rows of their
own. The key of a row is the id of the message it comes from, so that a rebuild gives exactly the
same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    String,
    Subquery,
    Table,
    and_,
    case,
    func,
    literal,
    not_,
    null,
    select,
)

from projections.item_tables import item_table, select_item_rows
from projections.items import (
    HANDOFF,
    Part,
    is_one_of,
    name_of,
    tool_name,
    types_by,
)
from projections.projection import ItemProjection
from projections.relation import AnySelect, Messages
from projections.types import LongText


def tool_calls_projection(
    metadata: MetaData, messages: Table, name: str = "agent_tool_calls"
) -> ItemProjection:
    """Return the read model, with a table called ``name`` of ``metadata`` beside ``messages``."""
    return ItemProjection(
        name="tool_calls",
        version=1,
        table=_table(metadata, messages, name),
        select=fold_tool_calls,
    )


def _table(metadata: MetaData, messages: Table, name: str) -> Table:
    table = item_table(
        metadata,
        messages,
        name,
        Column("call_id", String(255)),
        Column("tool_name", LongText),
        Column("arguments", LongText),
        Column("output", LongText),
        Column("status", String(255)),
        Column("output_raw_event_id", Integer),
    )
    Index(f"idx_{name}_session_call", table.c.session_id, table.c.call_id)
    Index(f"idx_{name}_session_output", table.c.session_id, table.c.output_raw_event_id)
    return table


OPEN, COMPLETED = "in_progress", "completed"

_HANDOFF_PREFIX = "transfer_to_"


def fold_tool_calls(messages: Messages) -> AnySelect:
    """Select the calls with their outputs, and the outputs that complete no call."""
    row = _linked(messages).c
    is_call = row.part == Part.CALL.value
    completed = and_(is_call, row.link.is_not(None), row.next_id.is_not(None))
    taken = and_(
        row.part == Part.OUTPUT.value, row.link.is_not(None), row.opened > 0, row.place == 2
    )
    in_hand = case((row.status != COMPLETED, row.status), else_=OPEN)
    status = case(
        (completed, func.coalesce(row.next_status, COMPLETED)),
        (is_call, in_hand),
        else_=func.coalesce(row.status, COMPLETED),
    )
    rows = select_item_rows(
        row,
        row.call_id,
        row.tool_name,
        row.arguments,
        case((completed, row.next_output), (is_call, null()), else_=row.output).label("output"),
        status.label("status"),
        case((completed, row.next_id)).label("output_raw_event_id"),
    )
    return rows.where(not_(taken))


def completed_calls(messages: Messages) -> AnySelect:
    """Select ``session_id, call_id`` of the calls that outputs among ``messages`` may complete."""
    row = messages.rows.c
    call_id = name_of(_call_id(messages, row))
    named = (
        select(row.session_id, call_id.label("call_id"))
        .where(row.part == Part.OUTPUT.value)
        .subquery("outputs")
        .c
    )
    return select(named.session_id, named.call_id).where(named.call_id.is_not(None)).distinct()


def _linked(messages: Messages) -> Subquery:
    """Return the tool items, each with the values of the next one that has its ``call_id``.

    The items with one call_id are divided into groups that each begin with a call. So the second
    item of a group, if there is one, is the output that counts.
    """
    row = _tool_items(messages).c
    numbered = (
        select(
            *row,
            func.count(case((row.part == Part.CALL.value, 1)))
            .over(partition_by=(row.session_id, row.link), order_by=(row.created_at, row.id))
            .label("opened"),
        )
        .subquery("opened")
        .c
    )
    group = (numbered.session_id, numbered.link, numbered.opened)
    in_order = (numbered.created_at, numbered.id)

    def following(column: Any) -> ColumnElement[Any]:
        return func.lead(column).over(partition_by=group, order_by=in_order)

    return select(
        *numbered,
        func.row_number().over(partition_by=group, order_by=in_order).label("place"),
        following(numbered.id).label("next_id"),
        following(numbered.output).label("next_output"),
        following(numbered.status).label("next_status"),
    ).subquery("linked")


def _tool_items(messages: Messages) -> Subquery:
    """Return the tool items with their parts; a call and its output have the same ``link``."""
    every = messages.rows.c
    row = (
        select(*every, _call_id(messages, every).label("said_call_id"))
        .where(every.part.is_not(None))
        .subquery("identified")
        .c
    )
    call_id = name_of(row.said_call_id)
    name = messages.string(row.item, "name")
    handed = func.substr(name, 1, len(_HANDOFF_PREFIX)) == _HANDOFF_PREFIX
    handoff = and_(row.type == "function_call", handed)
    return select(
        row.id,
        row.session_id,
        case((handoff, HANDOFF), else_=row.type).label("type"),
        row.part,
        call_id.label("call_id"),
        case((row.part != Part.BOTH.value, call_id)).label("link"),
        tool_name(messages, row).label("tool_name"),
        _field("arguments", row, messages.text).label("arguments"),
        _field("output", row, messages.text).label("output"),
        name_of(messages.string(row.item, "status")).label("status"),
        row.parent_raw_event_id,
        row.turn,
        row.run_id,
        row.trace_id,
        row.span_id,
        row.created_at,
    ).subquery("tool_items")


def _call_id(messages: Messages, row: Any) -> ColumnElement[Any]:
    """Return the call id; empty for tool searches without one.

    Searches on the model's side have no call id, so that each output belongs to the last search.
    """
    nameless = case((is_one_of(row.type, ("tool_search_call", "tool_search_output")), literal("")))
    return func.coalesce(_field("call_id", row, messages.string), nameless)


def _field(attribute: str, row: Any, extract: Callable[..., Any]) -> ColumnElement[Any]:
    """Return the first value among the fields that `TOOL_ITEMS` names for the item's type."""
    return case(
        *(
            (
                is_one_of(row.type, kinds),
                func.coalesce(*(extract(row.item, name) for name in names), null()),
            )
            for names, kinds in types_by(attribute).items()
            if names
        )
    )
