"""The end of a conversation, cut between turns so that no tool call loses its output.

A turn is a user message and what follows it up to the next one. What comes before any user message
counts as a turn, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar, cast

from eventmeta.core.errors import InvalidInput
from projections.items import TOOL_ITEMS

Item = TypeVar("Item")

_SEARCH = ""
"""Searches at the model's side have no call id, so that each output is of the last search."""


def check_turns(turns: object, limit: object) -> int:
    """``turns``, if it is a whole number and no ``limit`` is given as well.

    Raises:
        InvalidInput: It is not so.
    """
    if limit is not None:
        raise InvalidInput(f"limit {limit!r} and turns {turns!r} are both given: give one of them")
    if not isinstance(turns, int) or isinstance(turns, bool):
        raise InvalidInput(f"turns {turns!r} is not usable: give a whole number")
    return turns


def last_turns(items: Sequence[Item], count: int, *, complete: bool) -> list[Item] | None:
    """The items of the last ``count`` turns, and of those that belong to them.

    A turn is kept or left out as a whole. Where a call is in one turn and its output in another,
    either both turns are kept or none, wherever they are; so what is kept is as valid as the whole.

    Args:
        items: The end of the conversation, in order.
        count: How many turns.
        complete: Whether ``items`` are the whole conversation.

    Returns:
        The items in order; None if it takes earlier ones to tell.
    """
    if count <= 0 or (complete and not items):
        return []
    numbers = list(accumulate(int(is_user_message(item)) for item in items))
    last = numbers[-1] if numbers else 0
    kept = set(range(max(last - count + 1, 0), last + 1))
    _add_linked(kept, _links(items, numbers, complete=complete))
    if 0 in kept and not complete:
        return None
    return [item for turn, item in zip(numbers, items, strict=True) if turn in kept]


def _add_linked(turns: set[int], links: Iterable[tuple[int, int]]) -> None:
    """Add to ``turns`` all that are linked with one of them, directly or by way of others."""
    linked: dict[int, list[int]] = {}
    for a, b in links:
        linked.setdefault(a, []).append(b)
        linked.setdefault(b, []).append(a)
    found = list(turns)
    while found:
        for turn in linked.pop(found.pop(), ()):
            if turn not in turns:
                turns.add(turn)
                found.append(turn)


def is_user_message(item: object) -> bool:
    """Whether ``item`` begins a turn: by its role, as upstream has it, unless it is of a tool."""
    if not isinstance(item, dict):
        return False
    fields = cast("dict[str, Any]", item)
    kind = fields.get("type")
    return fields.get("role") == "user" and not (isinstance(kind, str) and kind in TOOL_ITEMS)


def _links(
    items: Sequence[object], numbers: Sequence[int], *, complete: bool
) -> Iterator[tuple[int, int]]:
    """The pairs of turns of which one holds a call and the other what refers to it.

    An id that was used again means its latest call. A call that is not among ``items`` is in the
    first turn, whose beginning is missing too, unless there is nothing before ``items``.
    """
    turn_of_call: dict[str, int] = {}
    for turn, item in zip(numbers, items, strict=True):
        if not isinstance(item, dict):
            continue
        fields = cast("dict[str, Any]", item)
        for call_id in _references(fields):
            called = turn_of_call.get(call_id, None if complete else 0)
            if called is not None:
                yield called, turn
        turn_of_call.update(dict.fromkeys(_names(fields), turn))


def _names(item: dict[str, Any]) -> Iterator[str]:
    """How later items may refer to ``item``; it is not known of every type whether it is a call."""
    if _is_output(item):
        return
    if item.get("type") == "tool_search_call":
        yield _SEARCH
    for name in ("call_id", "id"):
        if value := _id(item, name):
            yield value


def _references(item: dict[str, Any]) -> Iterator[str]:
    """The calls without which ``item`` makes no sense."""
    call_id = None
    if _is_output(item):
        call_id = _id(item, "call_id")
        if item["type"] == "local_shell_call_output":
            call_id = call_id or _id(item, "id")
        elif item["type"] == "tool_search_output":
            call_id = call_id or _SEARCH
    caller = item.get("caller")
    program = _id(cast("dict[str, Any]", caller), "caller_id") if isinstance(caller, dict) else None
    for reference in (call_id, _id(item, "approval_request_id"), program):
        if reference is not None:
            yield reference


def _is_output(item: dict[str, Any]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and (kind.endswith("_output") or kind == "mcp_approval_response")


def _id(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None
