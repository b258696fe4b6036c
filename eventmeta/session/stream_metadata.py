"""The metadata of a session or a user, now and at any earlier time."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Unpack

from eventmeta.core.as_of import parse_as_of
from eventmeta.core.canonical_json import Change, encode_changes
from eventmeta.core.events import Position, RecordedEvent, StreamKey
from eventmeta.core.large_inputs import is_large
from eventmeta.core.validation import check_keys
from eventmeta.core.write_order import Order, Turn
from eventmeta.log.commands import Command
from eventmeta.log.commands.options import WriteOptions, command_fields
from eventmeta.log.event_log import EventLog
from eventmeta.queries import history as past
from eventmeta.queries.scope import Scope


class StreamMetadata(ABC):
    """A session or a user with metadata. Every change is an event in its own stream."""

    _log: EventLog
    _stream: StreamKey
    _max_value_bytes: int

    async def set_metadata(
        self, metadata: Mapping[str, Any], **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Merge ``metadata`` into the metadata of the session or user, which is created if needed.

        Args:
            metadata: JSON values by key. ``{}`` does nothing. A large input is encoded in a thread:
                do not change it before the call has returned.
            **options: See `WriteOptions`.

        Returns:
            The ``metadata_set`` event; None if there was nothing to set.

        Raises:
            InvalidInput: A key or value cannot be stored, there are over 10,000 keys or 64 MiB, or
                the whole metadata of a user is longer than ``max_value_bytes``; nothing was
                changed.
            VersionConflict: The session or user is not at ``expected_version``; nothing was
                changed.
        """
        fields = self._fields("set_metadata()", options)
        encode = partial(encode_changes, metadata, self._max_value_bytes)
        large = is_large(metadata)
        if large and options.get("connection") is None:
            async with self._turn() as turn:
                changes = await asyncio.to_thread(encode)
                return await self._submit(self._setting(changes, fields), options, turn)
        changes = await asyncio.to_thread(encode) if large else encode()
        if not changes:
            return None
        return await self._submit(self._setting(changes, fields), options)

    async def get_metadata(
        self,
        keys: Sequence[str] | None = None,
        *,
        as_of: int | Position | datetime | None = None,
        default: Any = None,
    ) -> dict[str, Any]:
        """Return the metadata, now or at an earlier point.

        A session or user that does not exist has no metadata.

        Args:
            keys: The keys to return; None for all keys, in the order of their names.
            as_of: A version of the session or user, a `Position` of the log, or an aware datetime.
            default: The value of a key that does not exist. Pass `MISSING` to tell it from null.

        Raises:
            InvalidPoint: ``as_of`` names no point in history; a naive datetime is an example.
        """
        wanted = None if keys is None else check_keys(keys)
        view = self._view
        if as_of is not None:
            bound = parse_as_of(as_of)
            await self._connected()
            found = await past.metadata_as_of(view, self._stream, bound, wanted)
        else:
            await self._connected()
            found = await self._current_metadata(view, wanted)
        if wanted is None:
            return dict(sorted(found.items()))
        return {key: found.get(key, default) for key in wanted}

    async def delete_metadata(
        self, keys: Sequence[str] | None = None, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Remove the given keys, or all keys.

        Args:
            keys: The keys to remove; keys that do not exist are ignored. None removes all keys.
            **options: See `WriteOptions`.

        Returns:
            The ``metadata_deleted`` event, which names the keys that it removed; None if there
            were none.

        Raises:
            InvalidInput: A key or an option cannot be used; nothing was changed.
            VersionConflict: The session or user is not at ``expected_version``; nothing was
                changed.
        """
        wanted = None if keys is None else check_keys(keys)
        fields = self._fields("delete_metadata()", options)
        return await self._submit(self._deleting(wanted, fields), options)

    async def history(
        self, key: str | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[past.HistoryEntry]:
        """Return the events in order, each with the old and the new values of what it changed.

        Args:
            key: Only events that changed this key, each with only the change of this key.
            limit: The maximum number of events; None for all.
            after: Only events after this version: the ``version`` of the last entry seen.

        Raises:
            InvalidInput: An argument cannot be used.
        """
        page = past.Page.of(key, limit, after)
        view = self._view
        await self._connected()
        return await past.history(view, self._stream, page)

    async def diff(
        self, a: int | Position | datetime, b: int | Position | datetime
    ) -> dict[str, past.ValueChange]:
        """Return the keys whose values differ between two versions, positions or times.

        Raises:
            InvalidPoint: ``a`` or ``b`` names no point in history.
        """
        bounds = parse_as_of(a), parse_as_of(b)
        view = self._view
        await self._connected()
        return await past.diff(view, self._stream, *bounds)

    # --- What sessions and users do in their own ways -------------------------------------------

    @property
    @abstractmethod
    def _view(self) -> Scope:
        """Return the scope in which the principal reads."""

    @abstractmethod
    async def _connected(self) -> None:
        """Connect to the database, and check it before the first call."""

    @abstractmethod
    def _setting(self, changes: list[Change], fields: dict[str, Any]) -> Command:
        """Return the command that merges ``changes``."""

    @abstractmethod
    def _deleting(self, keys: Sequence[str] | None, fields: dict[str, Any]) -> Command:
        """Return the command that removes ``keys``, or all keys if None."""

    @abstractmethod
    async def _current_metadata(self, view: Scope, keys: Sequence[str] | None) -> dict[str, Any]:
        """Return the current metadata of at least these ``keys``, or of all keys if None."""

    def _fields(self, call: str, options: WriteOptions) -> dict[str, Any]:
        return command_fields(call, options, self._view.access)

    @property
    def _order(self) -> Order:
        return self._log.order

    def _turn(self) -> Turn:
        limits = self._view.limits or self._log.database.limits
        return self._order.turn(self._stream, limits)

    async def _submit(
        self, command: Command, options: WriteOptions, turn: Turn | None = None
    ) -> RecordedEvent | None:
        connection = options.get("connection")
        if connection is None:
            if turn is None and self._order.is_kept(self._stream):
                async with self._turn() as turn:
                    return await self._submit(command, options, turn)
            await self._connected()
        return await self._log.submit(command, connection, self._view.limits, turn)
