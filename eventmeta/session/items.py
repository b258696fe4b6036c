"""The conversation of a session: upstream's protocol, with every change in the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast

from eventmeta.codec import text_problem
from eventmeta.commands import AddItems, ClearSession, PopItem
from eventmeta.errors import InvalidInput
from eventmeta.identifiers import check_limit
from eventmeta.options import WriteOptions, command_fields
from eventmeta.read_statements import NO_LIMIT
from eventmeta.session.opened import OpenedSession

if TYPE_CHECKING:
    from agents import TResponseInputItem


class SessionItems(OpenedSession):
    """The items of a session."""

    async def _serialize_item(self, item: TResponseInputItem) -> str:
        """The text that is stored for ``item``; subclasses may override it."""
        return json.dumps(item, ensure_ascii=self._ensure_ascii, separators=(",", ":"))

    async def _deserialize_item(self, item: str) -> TResponseInputItem:
        """The item of a stored text; subclasses may override it."""
        return cast("TResponseInputItem", json.loads(item))

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items of the conversation in order, or the latest ``limit`` of them.

        Args:
            limit: How many; ``session_settings.limit`` if None, all if that is None too. Rows that
                hold no item are skipped and do not count.
        """
        if limit is None and self._session_settings is not None:
            limit = self._session_settings.limit
        if limit is not None:
            check_limit(limit)
        await self._connected()
        reads = self._database.reads
        if limit is None:
            rows = await self._database.fetch(reads.items(session_id=self.session_id))
            return await self._items(row[0] for row in rows)
        if limit <= 0:
            return []
        window = min(limit, NO_LIMIT)
        while True:
            query = reads.last_items(session_id=self.session_id, limit=window)
            rows = await self._database.fetch(query)
            items = await self._items(row[0] for row in reversed(rows))
            if len(items) >= limit or len(rows) < window:
                return items[-limit:]
            window = min(2 * window, NO_LIMIT)

    async def add_items(
        self, items: list[TResponseInputItem], **options: Unpack[WriteOptions]
    ) -> Any:
        """Add items to the end of the conversation, all or none, in this order.

        Returns:
            The ``items_added`` `RecordedEvent` with the ids of their rows; None if there are no
            items. (Typed as Any, as for upstream's protocol it would have to be None.)
        """
        fields = command_fields(options)
        if not items:
            return None
        texts = await self._texts(items)
        return await self._submit(AddItems(stream=self._stream, items=texts, **fields), options)

    async def pop_item(self, **options: Unpack[WriteOptions]) -> TResponseInputItem | None:
        """Remove the latest item and return it; None if there is none.

        Rows that hold no item are removed on the way.

        Raises:
            ItemAlreadyPopped: The ``event_id`` was used before; the content of the item which that
                attempt removed is not stored any more.
        """
        fields = command_fields(options)
        while True:
            command = PopItem(stream=self._stream, **fields)
            await self._submit(command, options)
            if command.popped is None:
                return None
            try:
                return await self._deserialize_item(command.popped[1])
            except (json.JSONDecodeError, TypeError):
                fields = command_fields({**options, "event_id": None, "expected_version": None})

    async def clear_session(
        self, *, keep_metadata: bool | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Remove all items, and the metadata unless ``keep_metadata``. The history stays.

        Args:
            keep_metadata: Whether the metadata stays; if None, as ``clear_keeps_metadata`` says.
            **options: See `WriteOptions`.

        Returns:
            The ``session_cleared`` `RecordedEvent`; None if there was nothing to clear. (Typed as
            Any, as for `add_items`.)
        """
        if keep_metadata is None:
            keep_metadata = self._clear_keeps_metadata
        command = ClearSession(
            stream=self._stream, keep_metadata=keep_metadata, **command_fields(options)
        )
        return await self._submit(command, options)

    async def _texts(self, items: Sequence[TResponseInputItem]) -> list[str]:
        """What is stored for ``items``.

        Raises:
            InvalidInput: A database would refuse or alter the text.
        """
        texts: list[str] = []
        for index, item in enumerate(items):
            text = await self._serialize_item(item)
            if problem := text_problem(text):
                raise InvalidInput(f"items[{index}]: its text {problem}")
            texts.append(text)
        return texts

    async def _items(self, texts: Iterable[str]) -> list[TResponseInputItem]:
        items: list[TResponseInputItem] = []
        for text in texts:
            try:
                items.append(await self._deserialize_item(text))
            except (json.JSONDecodeError, TypeError):
                continue
        return items
