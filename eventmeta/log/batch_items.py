"""Writing the items of a batch, with the rows of their sessions, after all existing items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eventmeta.dialects.statement import Program, recordset
from eventmeta.log.commands import AddItems, EventData, insert_items
from eventmeta.log.pending_event import PendingEvent, item_rows
from eventmeta.log.statements import AppendStatements


def write_items(drafts: Sequence[PendingEvent], sql: AppendStatements) -> Program[None]:
    """Write the items of ``drafts`` and the rows of their sessions, and set the items' ids."""
    adding = [(draft, draft.command) for draft in drafts if isinstance(draft.command, AddItems)]
    touched = {command.stream.stream_id for _, command in adding}
    created = {
        draft.command.stream.stream_id for draft in drafts if draft.command.creates_session
    } - touched
    if created:
        yield sql.commands.create_sessions(sessions=session_rows(created))
    if not touched:
        return
    touch = sql.commands.touch_sessions(sessions=session_rows(touched))
    yield touch.affecting(len(touched)) if sql.dialect.counts_upserts else touch
    items = item_rows(enumerate(command for _, command in adding))
    times = [sql.dialect.time_text(draft.recorded_at) for draft, _ in adding]
    for item in items:
        item["recorded_at"] = times[item["event"]]
    rows = yield from insert_items(sql.commands, recordset(items), len(items))
    ids: dict[str, list[int]] = {}
    for session_id, item_id in sorted(map(tuple, rows), reverse=True):
        ids.setdefault(session_id, []).append(item_id)
    for draft, command in adding:
        own = ids[command.stream.stream_id]
        item_ids = [own.pop() for _ in command.items]
        command.item_ids = item_ids
        draft.fact = EventData(draft.fact.type, {"item_ids": item_ids})


def put_items_last(drafts: Sequence[PendingEvent], sql: AppendStatements) -> Program[None]:
    """Move new items behind older ones whose time is later, if the INSERT could not.

    Call it after the positions are drawn. On MySQL a plain SELECT fixes the transaction's snapshot,
    and rows that others change after that, such as the counter, could not be locked any more.
    """
    ahead, move = sql.commands.items_ahead, sql.commands.move_items
    added: dict[str, list[int]] = {}
    for draft in drafts:
        if isinstance(draft.command, AddItems):
            item_ids = added.setdefault(draft.command.stream.stream_id, [])
            item_ids += draft.fact.data["item_ids"]
    if ahead is None or move is None or not added:
        return
    first = {min(item_ids): session_id for session_id, item_ids in added.items()}
    sessions = [{"session_id": name, "first": item_id} for item_id, name in first.items()]
    places = yield ahead(sessions=recordset(sessions))
    items = [{"id": each, "at": at} for at, new in places for each in added[first[new]]]
    if items:
        yield move(items=recordset(items))


def session_rows(session_ids: Iterable[str]) -> str:
    """Return the sessions as a record set, in the order of their ids."""
    return recordset([{"session_id": session_id} for session_id in sorted(session_ids)])
