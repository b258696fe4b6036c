"""The last turns of a conversation, cut so that no tool call loses its output.

A turn is a user message and the items that follow it, up to the next user message. The items before
the first user message count as a turn, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar, cast

from eventmeta.core.errors import InvalidInput
from projections.items import TOOL_ITEMS

Item = TypeVar("Item")

_SEARCH = ""
"""The id of searches by the model's provider, which have no call id.

Each output therefore belongs to the last search.
"""


def check_turns(turns: object, limit: object) -> int:
    """Return ``turns`` if it is a whole number and no ``limit`` is given.

    Raises:
        InvalidInput: ``turns`` is not a whole number, or both are given.
    """
    if limit is not None:
        raise InvalidInput(f"limit {limit!r} and turns {turns!r} are both given: give one of them")
    if not isinstance(turns, int) or isinstance(turns, bool):
        raise InvalidInput(f"turns {turns!r} is not usable: give a whole number")
    return turns


def last_turns(items: Sequence[Item], count: int, *, complete: bool) -> list[Item] | None:
    """Return the items of the last ``count`` turns, and of the turns that are linked with them.

    A turn is kept or left out as a whole. If a call is in one turn and its output in another,
    either both turns are kept or neither, wherever they are. So the result is valid if the whole
    conversation is.

    Args:
        items: The end of the conversation, in order.
        count: The number of turns.
        complete: Whether ``items`` are the whole conversation.

    Returns:
        The items in order; None if earlier items are needed to decide.
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
    """Add to ``turns`` all turns that are linked with one of them, directly or through others."""
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
    """Return whether ``item`` begins a turn.

    The role decides, as with upstream, but an item of a tool never begins a turn.
    """
    if not isinstance(item, dict):
        return False
    fields = cast("dict[str, Any]", item)
    kind = fields.get("type")
    return fields.get("role") == "user" and not (isinstance(kind, str) and kind in TOOL_ITEMS)


def _links(
    items: Sequence[object], numbers: Sequence[int], *, complete: bool
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of turns of which one holds a call and the other an item that refers to it.

    If several calls used an id, the id means the latest of them. A call that is not among ``items``
    is assumed to be in the first turn, whose beginning is missing too. If ``items`` are complete,
    a reference to such a call is ignored.
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
    """Yield the ids by which later items may refer to ``item``.

    For some types it is not known if they are calls, so every item but an output yields its ids.
    """
    if _is_output(item):
        return
    if item.get("type") == "tool_search_call":
        yield _SEARCH
    for name in ("call_id", "id"):
        if value := _id(item, name):
            yield value


def _references(item: dict[str, Any]) -> Iterator[str]:
    """Yield the ids of the calls without which ``item`` makes no sense."""
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
