"""SQL that reads an item of a conversation: its type, its turn, and the parts of a tool call.

Every item is a message, a tool call, the output of a tool call, or something else, which is kept as
it is. A turn begins with a message of the user and ends before the next one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Subquery,
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    select,
)

from projections.relation import MESSAGE_COLUMNS, AnySelect, Messages

MESSAGE = "message"
HANDOFF = "handoff"
UNKNOWN = "unknown"
"""The type of an item that cannot be read, or that has no type."""

MAX_NAME = 255
"""The maximum length of a name, in characters; a longer one would not fit into an index."""


class Part(StrEnum):
    """The part of a tool call that an item holds."""

    CALL = "call"
    OUTPUT = "output"
    BOTH = "both"


@dataclass(frozen=True)
class ToolItem:
    """The fields that hold the parts of a tool call in items of one type.

    Of several fields for one part, the first that has a value counts.

    Attributes:
        part: The call, its output, or both at once, if the tool runs on the model's side.
        arguments: The fields that may hold the arguments.
        output: The fields that may hold the output.
        call_id: The fields that may hold the id that the call and its output share.
    """

    part: Part
    arguments: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    call_id: tuple[str, ...] = ("call_id",)


def _call(*arguments: str, call_id: str = "call_id") -> ToolItem:
    return ToolItem(Part.CALL, arguments=arguments, call_id=(call_id,))


def _output(*output: str, call_id: tuple[str, ...] = ("call_id",)) -> ToolItem:
    return ToolItem(Part.OUTPUT, output=output, call_id=call_id)


def _both(arguments: str, *output: str) -> ToolItem:
    return ToolItem(Part.BOTH, (arguments,), output, call_id=("id",))


TOOL_ITEMS = {
    "function_call": _call("arguments"),
    "function_call_output": _output("output"),
    "custom_tool_call": _call("input"),
    "custom_tool_call_output": _output("output"),
    "computer_call": _call("actions", "action"),
    "computer_call_output": _output("output"),
    "shell_call": _call("action"),
    "shell_call_output": _output("output"),
    "local_shell_call": _call("action"),
    "local_shell_call_output": _output("output", call_id=("call_id", "id")),
    "apply_patch_call": _call("operation"),
    "apply_patch_call_output": _output("output"),
    "tool_search_call": _call("arguments"),
    "tool_search_output": _output("tools"),
    "program": _call("code"),
    "program_output": _output("result"),
    "mcp_approval_request": _call("arguments", call_id="id"),
    "mcp_approval_response": _output("approve", call_id=("approval_request_id",)),
    "mcp_call": _both("arguments", "output", "error"),
    "file_search_call": _both("queries", "results"),
    "web_search_call": _both("action"),
    "code_interpreter_call": _both("code", "outputs"),
    "image_generation_call": _both("revised_prompt", "result"),
}
"""The tool items of the Agents SDK, by type."""

OTHER_ITEMS = frozenset(
    {
        MESSAGE,
        "reasoning",
        "compaction",
        "compaction_trigger",
        "configuration_update",
        "additional_tools",
        "item_reference",
        "mcp_list_tools",
    }
)
"""The other items of the Agents SDK. Items of unknown types are treated like these."""


def is_one_of(column: ColumnElement[Any], values: Any) -> ColumnElement[bool]:
    """Return the condition that ``column`` is one of ``values``, as literals in the statement."""
    return column.in_([literal_column(f"'{value}'") for value in sorted(values)])


def name_of(text: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return ``text``, or NULL if it is too long for a name."""
    return case((func.char_length(text) <= MAX_NAME, text))


_TOOL_WORD = re.compile("|".join([*TOOL_ITEMS, r"\\u00[2-7]"]))
"""A pattern that matches the name of a type, or an escape that may stand for a letter of it."""


def may_be_tool_item(text: str) -> bool:
    """Return whether ``text``, a stored item, may be one of `TOOL_ITEMS`; True if in doubt."""
    return _TOOL_WORD.search(text) is not None


TURN_COLUMNS = (*MESSAGE_COLUMNS, "type", "role", "part", "turn", "parent_raw_event_id")
"""The columns of the relation of items that a projection is given."""


def types_by(attribute: str) -> dict[Any, list[str]]:
    """Return the types of tool items, grouped by the value of ``attribute``."""
    found: dict[Any, list[str]] = {}
    for kind, item in TOOL_ITEMS.items():
        found.setdefault(getattr(item, attribute), []).append(kind)
    return found


def classified(messages: Messages) -> Subquery:
    """Return ``messages`` with ``type`` and ``role``, and for tool items ``part``."""
    row = messages.rows.c
    given = (
        select(
            *row,
            messages.string(row.item, "type").label("said"),
            messages.string(row.item, "role").label("speaker"),
            messages.text(row.item, "type").is_(None).label("untyped"),
        )
        .offset(0)
        .subquery("given")
        .c
    )
    kind = case(
        (func.char_length(given.said).between(1, MAX_NAME), given.said),
        (and_(given.untyped, given.speaker.is_not(None)), MESSAGE),
        else_=UNKNOWN,
    )
    known = (
        select(
            *(given[name] for name in MESSAGE_COLUMNS),
            kind.label("type"),
            name_of(given.speaker).label("role"),
        )
        .offset(0)
        .subquery("known")
        .c
    )
    parts = types_by("part").items()
    part = case(*((is_one_of(known.type, kinds), str(part)) for part, kinds in parts))
    return select(*known, part.label("part")).subquery("classified")


def in_turns(messages: Messages) -> AnySelect:
    """Return the rows of `classified` with ``turn`` and ``parent_raw_event_id``."""
    row = classified(messages).c
    begins = and_(row.role == "user", row.part.is_(None))
    in_order = (row.created_at, row.id)
    begun = func.count(case((begins, 1))).over(partition_by=row.session_id, order_by=in_order)
    numbered = (
        select(*row, begins.label("begins"), (row.turn_before + begun).label("turn"))
        .subquery("numbered")
        .c
    )
    first = func.first_value(numbered.id).over(
        partition_by=(numbered.session_id, numbered.turn),
        order_by=(numbered.created_at, numbered.id),
    )
    parent = case(
        (numbered.begins, null()),
        (numbered.turn == numbered.turn_before, numbered.parent_before),
        else_=first,
    )
    return select(*(numbered[name] for name in TURN_COLUMNS[:-1]), parent.label(TURN_COLUMNS[-1]))


def tool_name(messages: Messages, row: Any) -> ColumnElement[Any]:
    """Return the name that upstream gives to the tool: with its server or namespace, if any."""
    name = messages.text(row.item, "name")
    server = messages.string(row.item, "server_label")
    namespace = messages.string(row.item, "namespace")
    of_server = func.coalesce(server + "." + name, server, name)
    qualified = case((and_(namespace != "", namespace != name), namespace + "." + name), else_=name)
    named = case(
        (is_one_of(row.type, ("mcp_call", "mcp_approval_request")), of_server),
        (is_one_of(row.type, ("tool_search_call", "tool_search_output")), literal("tool_search")),
        (is_one_of(row.type, _NAMED), qualified),
    )
    return func.coalesce(named, row.type)


_NAMED = (
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
)
