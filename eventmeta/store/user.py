"""`User`: the metadata of a user, now and at any earlier time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventmeta.core.canonical_json import Change
from eventmeta.core.events import StreamKey
from eventmeta.core.validation import check_user_id
from eventmeta.log.commands import Command, DeleteUserMetadata, SetUserMetadata
from eventmeta.log.event_log import EventLog
from eventmeta.queries.history import document_of
from eventmeta.queries.scope import Scope
from eventmeta.session.stream_metadata import StreamMetadata


class User(StreamMetadata):
    """A user with metadata. Every change is an event in the user's own stream.

    `MetadataStore.user` returns one. The metadata works like the metadata of a session.
    """

    def __init__(self, user_id: str, log: EventLog, view: Scope, max_value_bytes: int) -> None:
        self._stream = StreamKey(check_user_id(user_id), "user")
        self._log = log
        self._own_view = view
        self._max_value_bytes = max_value_bytes

    @property
    def user_id(self) -> str:
        """Return the id of the user."""
        return self._stream.stream_id

    @property
    def _view(self) -> Scope:
        return self._own_view

    async def _connected(self) -> None:
        await self._log.database.opening.connect(create=False, limits=self._view.limits)

    def _setting(self, changes: list[Change], fields: dict[str, Any]) -> Command:
        return SetUserMetadata(
            stream=self._stream, changes=changes, max_value_bytes=self._max_value_bytes, **fields
        )

    def _deleting(self, keys: Sequence[str] | None, fields: dict[str, Any]) -> Command:
        return DeleteUserMetadata(stream=self._stream, keys=keys, **fields)

    async def _current_metadata(self, view: Scope, keys: Sequence[str] | None) -> dict[str, Any]:
        return document_of(await view.fetch(view.reads.user, user_id=self.user_id))
