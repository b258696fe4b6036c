"""Metadata of a session or a user, now and at any time before."""

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
from eventmeta.core.large_inputs import Order, is_large
from eventmeta.core.validation import check_keys
from eventmeta.log.commands import Command
from eventmeta.log.commands.options import WriteOptions, command_fields
from eventmeta.log.event_log import EventLog
from eventmeta.queries import history as past
from eventmeta.queries.scope import Scope


class StreamMetadata(ABC):
    """A session or a user with metadata, whose every change is an event of its own stream."""

    _log: EventLog
    _stream: StreamKey
    _max_value_bytes: int

    async def set_metadata(
        self, metadata: Mapping[str, Any], **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Merge ``metadata`` into that of the session or user, which is created if need be.

        Args:
            metadata: JSON values by key. ``{}`` does nothing. What is large is encoded in a thread:
                do not change it before the call has returned.
            **options: See `WriteOptions`.

        Returns:
            The ``metadata_set`` event; None if there was nothing to set.

        Raises:
            InvalidInput: A key or value cannot be stored, there are over 10,000 keys or 64 MiB, or
                all that is known about a user is longer than ``max_value_bytes``; nothing was
                changed.
            VersionConflict: It is not at ``expected_version``; nothing was changed.
        """
        fields = self._fields("set_metadata()", options)
        encode = partial(encode_changes, metadata, self._max_value_bytes)
        if is_large(metadata):
            async with self._order.large_write(self._stream):
                changes = await asyncio.to_thread(encode)
                return await self._submit(self._setting(changes, fields), options, in_order=True)
        changes = encode()
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
        """The metadata, now or as it was; of a session or user that does not exist, none.

        Args:
            keys: Which; None for all there are, in the order of their names.
            as_of: A version of the session or user, a `Position` of the log, or an aware datetime.
            default: Stands for a key that is not there. Pass `MISSING` to tell it from null.

        Raises:
            InvalidPoint: ``as_of`` names no point in history, such as a naive datetime.
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
        """Remove the given keys, or all.

        Args:
            keys: Which; those that are not there are passed over. None for all there are.
            **options: See `WriteOptions`.

        Returns:
            The ``metadata_deleted`` event, which names what was there to remove; None if nothing.

        Raises:
            InvalidInput: A key or an option cannot be used; nothing was changed.
            VersionConflict: It is not at ``expected_version``; nothing was changed.
        """
        wanted = None if keys is None else check_keys(keys)
        fields = self._fields("delete_metadata()", options)
        return await self._submit(self._deleting(wanted, fields), options)

    async def history(
        self, key: str | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[past.HistoryEntry]:
        """The events in order, each with the old and the new value of what it changed.

        Args:
            key: Only events that changed this key, and only that change of theirs.
            limit: At most so many.
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
        """The keys whose values differ between two versions, positions or times.

        Raises:
            InvalidPoint: ``a`` or ``b`` names no point in history.
        """
        bounds = parse_as_of(a), parse_as_of(b)
        view = self._view
        await self._connected()
        return await past.diff(view, self._stream, *bounds)

    # --- Of which kind it is --------------------------------------------------------------------

    @property
    @abstractmethod
    def _view(self) -> Scope:
        """The log, as far as whoever asks reaches."""

    @abstractmethod
    async def _connected(self) -> None:
        """Make sure of the database before the first call."""

    @abstractmethod
    def _setting(self, changes: list[Change], fields: dict[str, Any]) -> Command:
        """The command that merges ``changes``."""

    @abstractmethod
    def _deleting(self, keys: Sequence[str] | None, fields: dict[str, Any]) -> Command:
        """The command that removes ``keys``, or all."""

    @abstractmethod
    async def _current_metadata(self, view: Scope, keys: Sequence[str] | None) -> dict[str, Any]:
        """The metadata of at least these ``keys``, or all."""

    def _fields(self, call: str, options: WriteOptions) -> dict[str, Any]:
        return command_fields(call, options, self._view.access)

    @property
    def _order(self) -> Order:
        return self._log.order

    async def _submit(
        self, command: Command, options: WriteOptions, *, in_order: bool = False
    ) -> RecordedEvent | None:
        if not in_order and (order := self._log.order).is_kept(self._stream):
            await order.wait(self._stream)
        connection = options.get("connection")
        if connection is None:
            await self._connected()
        return await self._log.submit(command, connection, self._view.limits)
