"""What upstream's compaction asks of a session, so that it need not clear and rewrite it.

`OpenAIResponsesCompactionSession` takes a snapshot of the latest items, lets a model write a
shorter form of them, and puts that in their place if they are still the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventmeta.core.large_inputs import is_large
from eventmeta.dialects.statement import Row
from eventmeta.log.commands import ReplaceItems
from eventmeta.queries.statements import NO_LIMIT
from eventmeta.session.items import SessionItems

if TYPE_CHECKING:
    from agents import TResponseInputItem

    Prune = Callable[[TResponseInputItem], bool]


@dataclass(frozen=True)
class CompactionSnapshot:
    """The latest items, whether they are all there are, and how to replace a tail of them."""

    items: list[TResponseInputItem]
    complete: bool
    replace_suffix: Callable[[int, list[TResponseInputItem]], Awaitable[bool]]


class SessionCompaction(SessionItems):
    """Items that can be replaced in one transaction, without touching anything else."""

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Replace the whole history."""
        if self._transforms_items():
            return False
        return await self._replace(None, (), items)

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Prune | None = None
    ) -> CompactionSnapshot | None:
        """The latest ``limit`` items; None if a row among them holds no item.

        Args:
            limit: How many.
            prune_prefix: Tells of an item before the replaced ones that it has expired; a run of
                those at the very beginning of the history is removed in the same transaction.
        """
        if self._transforms_items():
            return None
        await self._connected()
        fetched = await self._last_rows(limit + 1)
        rows = fetched[:limit][::-1]
        try:
            items = [await self._deserialize_item(text) for text, _ in rows]
        except (json.JSONDecodeError, TypeError):
            return None

        async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
            suffix = rows[start:]
            if not suffix:
                return False
            expired = await self._expired(suffix, prune_prefix) if prune_prefix else ()
            return await self._replace([(row[1], row[0]) for row in suffix], expired, output)

        return CompactionSnapshot(items, len(fetched) <= limit, replace_suffix)

    async def _replace(
        self,
        expected: Sequence[tuple[int, str]] | None,
        expired: Sequence[int],
        items: list[TResponseInputItem],
    ) -> bool:
        command = ReplaceItems(
            stream=self._stream,
            expected=expected,
            expired=expired,
            items=await self._texts(items, are_large=is_large(items)),
            **self._fields("add_items()", {}),
        )
        await self._submit(command, {})
        return command.replaced

    async def _expired(self, suffix: Sequence[Row], prune: Prune) -> list[int]:
        """Ids of the expired items from the beginning up to the first that has not expired."""
        kept = {row[1] for row in suffix}
        expired: list[int] = []
        for text, item_id in reversed(await self._last_rows(NO_LIMIT)):
            if item_id in kept:
                break
            try:
                if not prune(await self._deserialize_item(text)):
                    break
            except (json.JSONDecodeError, TypeError):
                break
            expired.append(item_id)
        return expired

    def _transforms_items(self) -> bool:
        """Whether a subclass reads or adds items in its own way, which must not be bypassed."""
        mine = type(self)
        own = (mine.get_items, mine.add_items)
        return own != (SessionItems.get_items, SessionItems.add_items)
