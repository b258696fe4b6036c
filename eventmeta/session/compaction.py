"""Compaction: replacing items in one transaction, so that upstream need not clear the session.

`OpenAIResponsesCompactionSession` takes a snapshot of the latest items and lets a model write a
shorter form. It replaces the items with the shorter form if they have not changed meanwhile.
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
    """A snapshot of the latest items.

    Attributes:
        items: The items, in order.
        complete: Whether the session has no earlier items.
        replace_suffix: Replaces the items from an index on, and returns whether it did so.
    """

    items: list[TResponseInputItem]
    complete: bool
    replace_suffix: Callable[[int, list[TResponseInputItem]], Awaitable[bool]]


class SessionCompaction(SessionItems):
    """A session whose items can be replaced in one transaction, without any other change."""

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Replace all items, and return whether that was done."""
        if self._transforms_items():
            return False
        return await self._replace(None, (), items)

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Prune | None = None
    ) -> CompactionSnapshot | None:
        """Return a snapshot of the latest ``limit`` items.

        Returns None if one of their rows holds no item, or if a subclass transforms items.

        Args:
            limit: The maximum number of items.
            prune_prefix: Returns whether an item before the replaced ones has expired. Expired
                items at the very beginning of the conversation, up to the first that has not
                expired, are removed in the same transaction.
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
        """Return the ids of the expired items, from the beginning up to the first other row."""
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
        """Return whether a subclass has its own way to read or add items.

        Compaction must not bypass it.
        """
        mine = type(self)
        own = (mine.get_items, mine.add_items)
        return own != (SessionItems.get_items, SessionItems.add_items)
