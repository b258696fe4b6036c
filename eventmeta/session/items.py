"""The items of a session: upstream's protocol, with every change recorded in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast

from eventmeta.core.canonical_json import (
    MAX_CALL_BYTES,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    check_number,
    check_size,
    json_error,
    text_problem,
)
from eventmeta.core.errors import InvalidInput
from eventmeta.core.large_inputs import LARGE_TEXT, Pauses, encoded, is_large
from eventmeta.core.validation import check_flag, check_items, check_limit
from eventmeta.log.commands import AddItems, ClearSession, PopItem
from eventmeta.log.commands.options import WriteOptions
from eventmeta.queries.statements import NO_LIMIT
from eventmeta.session.turns import check_turns, last_turns
from eventmeta.session.usage import SessionUsage

if TYPE_CHECKING:
    from agents import RunContextWrapper, TResponseInputItem

_ENCODERS = {
    ascii_only: json.JSONEncoder(ensure_ascii=ascii_only, separators=(",", ":"))
    for ascii_only in (False, True)
}


class SessionItems(SessionUsage):
    """A session with its items."""

    @property
    def _has_own_texts(self) -> bool:
        """Return whether a subclass makes the texts of items itself."""
        return type(self)._serialize_item is not SessionItems._serialize_item

    async def _serialize_item(self, item: TResponseInputItem) -> str:
        """Return the text that is stored for ``item``; subclasses may override this method."""
        encode = partial(_dump, item, ensure_ascii=self._ensure_ascii)
        return await encoded(item, encode)

    async def _deserialize_item(self, item: str) -> TResponseInputItem:
        """Return the item of a stored text; subclasses may override this method."""
        if len(item) > LARGE_TEXT:
            return cast("TResponseInputItem", await asyncio.to_thread(json.loads, item))
        return cast("TResponseInputItem", json.loads(item))

    async def get_items(
        self,
        limit: int | None = None,
        *,
        turns: int | None = None,
        wrapper: RunContextWrapper[Any] | None = None,
    ) -> list[TResponseInputItem]:
        """Return the items of the conversation in order, or only the latest of them.

        Args:
            limit: The maximum number of items, counted from the end. If None,
                ``session_settings.limit`` applies; if that is None too, all items are returned.
                Rows that hold no item are skipped and do not count.
            turns: How many turns to return, counted from the end, instead of ``limit``. A turn is a
                user message and the items that follow it, up to the next user message. Turns are
                returned whole, and no tool call is without its output: if an output is in a later
                turn than its call, either both turns are returned or neither, even if that makes
                one turn more than ``turns``. ``session_settings.limit`` does not apply.
            wrapper: The context wrapper of the run, as the Runner passes it.

        Raises:
            InvalidInput: ``limit`` and ``turns`` are both given, or one is not a whole number.
        """
        self._bind(wrapper)
        await self._notice(wrapper)
        if turns is not None:
            return await self._items_of_turns(check_turns(turns, limit))
        if limit is None and self._session_settings is not None:
            limit = self._session_settings.limit
        if limit is not None:
            check_limit(limit)
        await self._connected()
        if limit is None:
            view = self._view
            rows = await view.fetch(view.reads.items, session_id=self.session_id)
            return await self._items(row[0] for row in rows)
        if limit <= 0:
            return []
        window = min(limit, NO_LIMIT)
        while True:
            rows = await self._last_rows(window)
            items = await self._items(text for text, _ in reversed(rows))
            if len(items) >= limit or len(rows) < window:
                return items[-limit:]
            window = min(2 * window, NO_LIMIT)

    async def _items_of_turns(self, turns: int) -> list[TResponseInputItem]:
        await self._connected()
        window = 16
        while True:
            rows = await self._last_rows(window)
            items = await self._items(text for text, _ in reversed(rows))
            found = last_turns(items, turns, complete=len(rows) < window)
            if found is not None:
                return found
            window *= 4

    async def add_items(
        self,
        items: list[TResponseInputItem],
        *,
        wrapper: RunContextWrapper[Any] | None = None,
        **options: Unpack[WriteOptions],
    ) -> Any:
        """Add items to the end of the conversation in this order, all or none.

        Args:
            items: The items to add.
            wrapper: The context wrapper of the run, as the Runner passes it. With
                ``structured_metadata``, what the run has used since the last record is recorded in
                the same transaction, by an event of its own: both or neither. If that is inside
                the caller's ``connection``, the caller might roll back. So the first call after
                that transaction submits the same event again, which is recorded at most once.
            **options: See `WriteOptions`.

        Returns:
            The ``items_added`` `RecordedEvent` with the row ids of the items; None if ``items`` is
            empty. (The type is Any because upstream's protocol would require None.)

        Raises:
            InvalidInput: An item is not JSON or is over 16 MiB, there are over 10,000 items or
                64 MiB in all, or an option cannot be used; nothing was changed.
            VersionConflict: The session is not at ``expected_version``; nothing was changed.
            SessionNotFound: The session is not visible to the user.
        """
        self._bind(wrapper)
        fields = self._fields("add_items()", options)
        items = check_items(items, of_any_kind=self._has_own_texts)
        if not items:
            return None
        large = is_large(items)
        if (large or self._has_own_texts) and options.get("connection") is None:
            async with self._turn() as turn:
                texts = await self._texts(items, are_large=large)
                command = AddItems(stream=self._stream, items=texts, **fields)
                return await self._add(command, items, wrapper, options, turn)
        texts = await self._texts(items, are_large=large)
        command = AddItems(stream=self._stream, items=texts, **fields)
        return await self._add(command, items, wrapper, options)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None, **options: Unpack[WriteOptions]
    ) -> TResponseInputItem | None:
        """Remove the latest item and return it; return None if there is none.

        Rows behind that item that hold no item are removed too.

        Args:
            wrapper: The context wrapper of the run, as the Runner passes it.
            **options: See `WriteOptions`.

        Raises:
            ItemAlreadyPopped: An earlier attempt used this ``event_id``. The content of the item
                that it removed is not stored any more.
        """
        self._bind(wrapper)
        fields = self._fields("pop_item()", options)
        while True:
            command = PopItem(stream=self._stream, **fields)
            await self._submit(command, options)
            if command.popped is None:
                return None
            try:
                return await self._deserialize_item(command.popped[1])
            except (json.JSONDecodeError, TypeError):
                again: WriteOptions = {**options, "event_id": None, "expected_version": None}
                fields = self._fields("pop_item()", again)

    async def clear_session(
        self,
        *,
        keep_metadata: bool | None = None,
        wrapper: RunContextWrapper[Any] | None = None,
        **options: Unpack[WriteOptions],
    ) -> Any:
        """Remove all items, and the metadata unless ``keep_metadata`` is true. The history stays.

        Args:
            keep_metadata: Whether the metadata stays; if None, ``clear_keeps_metadata`` decides.
            wrapper: The context wrapper of the run, as the Runner passes it.
            **options: See `WriteOptions`.

        Returns:
            The ``session_cleared`` `RecordedEvent`; None if there was nothing to clear. (The type
            is Any for the same reason as with `add_items`.)

        Raises:
            InvalidInput: An option cannot be used; nothing was changed.
            VersionConflict: The session is not at ``expected_version``; nothing was changed.
        """
        self._bind(wrapper)
        if keep_metadata is None:
            keep_metadata = self._clear_keeps_metadata
        check_flag("keep_metadata", keep_metadata)
        command = ClearSession(
            stream=self._stream,
            keep_metadata=keep_metadata,
            **self._fields("clear_session()", options),
        )
        return await self._submit(command, options)

    async def _texts(self, items: Sequence[TResponseInputItem], *, are_large: bool) -> list[str]:
        """Return the texts that are stored for ``items``.

        Small inputs are encoded without a pause, so that no later call overtakes this one.

        Raises:
            InvalidInput: An item is not JSON, a database would refuse or alter its text, or there
                are too many items.
            ValueTooLarge: One item is too large, or all items together are.
        """
        check_number("items", len(items), MAX_ITEMS)
        texts: list[str] = []
        pauses, total = Pauses() if are_large else None, 0
        at_once = None if are_large or self._has_own_texts else _ENCODERS[self._ensure_ascii].encode
        for index, item in enumerate(items):
            try:
                text = at_once(item) if at_once else await self._serialize_item(item)
            except (TypeError, ValueError, RecursionError) as error:
                raise json_error(item, f"items[{index}]", error) from None
            if problem := text_problem(text):
                raise InvalidInput(f"items[{index}]: its text {problem}")
            size = len(text) if text.isascii() else len(text.encode())
            total += size
            check_size(f"items[{index}]", size, MAX_ITEM_BYTES)
            check_size("items", total, MAX_CALL_BYTES)
            texts.append(text)
            if pauses is not None:
                await pauses.pause()
        return texts

    async def _items(self, texts: Iterable[str]) -> list[TResponseInputItem]:
        items: list[TResponseInputItem] = []
        pauses = Pauses()
        for text in texts:
            await pauses.pause()
            try:
                items.append(await self._deserialize_item(text))
            except (json.JSONDecodeError, TypeError):
                continue
        return items


def _dump(item: TResponseInputItem, *, ensure_ascii: bool) -> str:
    """Return the JSON of ``item``.

    A large item is encoded piece by piece, because the encoder in C would block other threads.
    """
    encoder = _ENCODERS[ensure_ascii]
    return "".join(encoder.iterencode(item)) if is_large(item) else encoder.encode(item)
