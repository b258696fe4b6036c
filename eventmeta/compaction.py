"""What upstream's compaction asks of a session, so that it need not clear and rewrite it.

`OpenAIResponsesCompactionSession` takes a snapshot of the latest items, lets a model write a
shorter form of them, and puts that in their place if they are still the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventmeta.commands import ReplaceItems
from eventmeta.dialects.statement import Row
from eventmeta.options import command_fields

if TYPE_CHECKING:
    from agents import TResponseInputItem

    from eventmeta.session import MetadataSession

    Prune = Callable[[TResponseInputItem], bool] | None


@dataclass(frozen=True)
class CompactionSnapshot:
    """The latest items, whether they are all there are, and how to replace a tail of them."""

    items: list[TResponseInputItem]
    complete: bool
    replace_suffix: Callable[[int, list[TResponseInputItem]], Awaitable[bool]]


async def take_snapshot(
    session: MetadataSession, limit: int, prune: Prune
) -> CompactionSnapshot | None:
    """The latest ``limit`` items; None if a row among them holds no item.

    Args:
        session: Whose items.
        limit: How many.
        prune: Tells of an item before the replaced ones that it has expired; a run of those at the
            very beginning of the history is removed in the same transaction.
    """
    database = session._database
    query = database.queries.last_items(session_id=session.session_id, limit=limit + 1)
    fetched = await database.fetch(query)
    rows = fetched[:limit][::-1]
    try:
        items = [await session._deserialize_item(text) for text, _ in rows]
    except (json.JSONDecodeError, TypeError):
        return None

    async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
        suffix = rows[start:]
        if not suffix:
            return False
        command = ReplaceItems(
            stream=session._stream,
            expected=[(item_id, text) for text, item_id in suffix],
            expired=await _expired(session, suffix, prune) if prune else (),
            items=await session._texts(output),
            **command_fields({}),
        )
        await session._submit(command, {})
        return command.replaced

    return CompactionSnapshot(items, len(fetched) <= limit, replace_suffix)


async def _expired(
    session: MetadataSession, suffix: Sequence[Row], prune: Callable[[TResponseInputItem], bool]
) -> list[int]:
    """Ids of the expired items from the beginning up to the first that has not expired."""
    database = session._database
    query = database.queries.last_items(session_id=session.session_id, limit=2**31 - 1)
    rows = await database.fetch(query)
    kept = {item_id for _, item_id in suffix}
    expired = []
    for text, item_id in reversed(rows):
        if item_id in kept:
            break
        try:
            if not prune(await session._deserialize_item(text)):
                break
        except (json.JSONDecodeError, TypeError):
            break
        expired.append(item_id)
    return expired
