"""Updating the tables of conversations and tool calls after a change of items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eventmeta.core.events import ITEM_POPPED, ITEMS_ADDED, ITEMS_REPLACED, SESSION_CLEARED
from eventmeta.dialects.statement import Program, recordset
from eventmeta.read_models.item_statements import ItemStatements
from eventmeta.read_models.spelling import completed_calls, spelled_out


@dataclass(frozen=True)
class ItemChange:
    """The part of a session's event that concerns the session's items.

    Attributes:
        session_id: The session.
        type: The type of the event.
        data: The data of the event.
        context: The context of the event, as JSON text.
        items: The texts of the items that were added.
        tools: There may be tool items among the added ones.
    """

    session_id: str
    type: str
    data: dict[str, Any]
    context: str | None
    items: Sequence[str]
    tools: bool


def follow(sql: ItemStatements, changes: Sequence[ItemChange]) -> Program[None]:
    """Update the tables after ``changes`` of items, which are made and recorded."""
    touched = [change for change in changes if change.type in _TYPES]
    if not touched:
        return
    first: dict[str, int | None] = {change.session_id: None for change in touched}
    for change in _of_type(touched, ITEMS_ADDED):
        known = first[change.session_id]
        new = min(change.data["item_ids"])
        first[change.session_id] = new if known is None else min(known, new)
    gone = {change.session_id: change.data["item_id"] for change in _of_type(touched, ITEM_POPPED)}
    sessions = [
        {"session_id": key, "first": value, "gone": gone.get(key)}
        for key, value in sorted(first.items())
    ]
    states = yield sql.states(sessions=recordset(sessions))
    anew = {change.session_id for change in _of_type(touched, ITEMS_REPLACED)}
    anew |= {session_id for session_id, _, _, stale in states if stale}
    if anew:
        yield from rebuild(sql, anew)
    turns = {session_id: (turn, parent) for session_id, turn, parent, _ in states}
    rest = [change for change in touched if change.session_id not in anew]
    added = recordset(list(_added(rest, turns)))
    removed = [
        {"session_id": change.session_id, "id": change.data["item_id"]}
        for change in _of_type(rest, ITEM_POPPED)
    ]
    if rest:
        tools = bool(removed) or any(change.tools for change in rest)
        items = {"added": added, "removed": recordset(removed)}
        unreadable = yield from _unreadable(sql, rest, removed)
        if unreadable:
            sql, items["spelled"] = sql.with_spelled, recordset(unreadable)
        if tools:
            yield sql.write_tool_calls(**items)
        yield sql.write_conversation(**items)


def rebuild(sql: ItemStatements, session_ids: Iterable[str]) -> Program[None]:
    """Make all rows of the sessions match their items."""
    sessions = recordset([{"session_id": session_id} for session_id in sorted(session_ids)])
    rows = (yield sql.unreadable(sessions=sessions)) if sql.unreadable else ()
    spelled = spelled_out(rows)
    for table in (sql.with_spelled if spelled else sql).rebuild:
        others = yield table.others(sessions=sessions, spelled=recordset(spelled))
        if others:
            gone = recordset([{"id": item_id} for (item_id,) in others])
            yield table.remove(items=gone).affecting(len(others))
        yield table.write(sessions=sessions, spelled=recordset(spelled))


_TYPES = frozenset({ITEMS_ADDED, ITEM_POPPED, ITEMS_REPLACED, SESSION_CLEARED})


def _of_type(changes: Iterable[ItemChange], kind: str) -> Iterable[ItemChange]:
    return (change for change in changes if change.type == kind)


def _unreadable(
    sql: ItemStatements, changes: Sequence[ItemChange], removed: Sequence[dict[str, Any]]
) -> Program[list[dict[str, Any]]]:
    """Return the rows of ``spelled`` for the added items and the items linked with them."""
    if sql.unreadable_linked is None:
        return []
    links: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for change in _of_type(changes, ITEMS_ADDED):
        found += spelled_out(zip(change.data["item_ids"], change.items, strict=True))
        if change.tools:
            session = {"session_id": change.session_id}
            links += ({**session, "call_id": each} for each in completed_calls(change.items))
    if links or removed:
        rows = yield sql.unreadable_linked(links=recordset(links), removed=recordset(removed))
        found += spelled_out(rows)
    return found


def _added(
    changes: Iterable[ItemChange], turns: dict[str, tuple[int, int | None]]
) -> Iterable[dict[str, Any]]:
    for change in _of_type(changes, ITEMS_ADDED):
        turn, parent = turns[change.session_id]
        for item_id in change.data["item_ids"]:
            yield {
                "id": item_id,
                "context": change.context,
                "turn_before": turn,
                "parent_before": parent,
            }
