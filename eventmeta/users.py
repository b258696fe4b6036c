"""`User`: what is known about a user, now and at any time before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

from eventmeta import history as past
from eventmeta.codec import encode_changes
from eventmeta.commands import Command, DeleteUserMetadata, SetUserMetadata, StreamKey
from eventmeta.events import Position, RecordedEvent
from eventmeta.identifiers import check_keys, check_user_id
from eventmeta.options import WriteOptions, command_fields
from eventmeta.view import View


class User:
    """A user with metadata, whose every change is an event in the user's own stream.

    Made by `MetadataStore.user`. Metadata works as that of a session does.
    """

    def __init__(self, user_id: str, view: View, max_value_bytes: int) -> None:
        self._stream = StreamKey(check_user_id(user_id), "user")
        self._view = view
        self._max_value_bytes = max_value_bytes

    @property
    def user_id(self) -> str:
        """Who it is."""
        return self._stream.stream_id

    async def set_metadata(
        self, metadata: Mapping[str, Any], **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Merge ``metadata`` into that of the user, who is created if need be.

        Args:
            metadata: JSON values by key. ``{}`` does nothing.
            **options: See `WriteOptions`; versions are those of the user.

        Returns:
            The ``metadata_set`` event; None if there was nothing to set.

        Raises:
            InvalidInput: A key or value cannot be stored, or all together are longer than
                ``max_value_bytes``; nothing was changed.
            VersionConflict: The user is not at ``expected_version``; nothing was changed.
        """
        fields = command_fields(options, self._view.access)
        changes = encode_changes(metadata, self._max_value_bytes)
        if not changes:
            return None
        command = SetUserMetadata(
            stream=self._stream,
            changes=changes,
            max_value_bytes=self._max_value_bytes,
            **fields,
        )
        return await self._submit(command, options)

    async def get_metadata(
        self,
        keys: Sequence[str] | None = None,
        *,
        as_of: int | Position | datetime | None = None,
        default: Any = None,
    ) -> dict[str, Any]:
        """The metadata of the user, now or as it was; of one who does not exist, none.

        Args:
            keys: Which; None for all there are.
            as_of: A version of the user, a `Position` of the log, or an aware datetime.
            default: Stands for a key that is not there. Pass `MISSING` to tell it from null.

        Raises:
            InvalidPoint: ``as_of`` names no point in history, such as a naive datetime.
        """
        wanted = None if keys is None else check_keys(keys)
        bound = None if as_of is None else past.bound_of(as_of)
        await self._connected()
        view = self._view
        if bound is not None:
            found = await past.metadata_as_of(view, self._stream, bound, wanted)
        else:
            found = past.document_of(await view.fetch(view.reads.user, user_id=self.user_id))
        if wanted is None:
            return found
        return {key: found.get(key, default) for key in wanted}

    async def delete_metadata(
        self, keys: Sequence[str] | None = None, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Remove the given keys, or all.

        Returns:
            The ``metadata_deleted`` event, which names what was there to remove; None if nothing.
        """
        wanted = None if keys is None else check_keys(keys)
        fields = command_fields(options, self._view.access)
        command = DeleteUserMetadata(stream=self._stream, keys=wanted, **fields)
        return await self._submit(command, options)

    async def history(
        self, key: str | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[past.HistoryEntry]:
        """The user's events in order, each with the old and the new value of what it changed.

        Args:
            key: Only events that changed this key, and only that change of theirs.
            limit: At most so many.
            after: Only events after this version: the ``version`` of the last entry seen.
        """
        page = past.Page.of(key, limit, after)
        await self._connected()
        return await past.history(self._view, self._stream, page)

    async def _connected(self) -> None:
        await self._view.database.connect(create=False)

    async def _submit(self, command: Command, options: WriteOptions) -> RecordedEvent | None:
        connection = options.get("connection")
        if connection is None:
            await self._connected()
        return await self._view.database.submit(command, connection)
