"""What is known about a session, now and at any time before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

from eventmeta import history as past
from eventmeta.codec import encode_changes, parse
from eventmeta.commands import DeleteMetadata, SetMetadata
from eventmeta.events import Position, RecordedEvent
from eventmeta.identifiers import check_keys
from eventmeta.options import WriteOptions
from eventmeta.search import find_sessions
from eventmeta.session.opened import OpenedSession
from eventmeta.view import View


class SessionMetadata(OpenedSession):
    """The metadata of a session."""

    async def set_metadata(
        self, metadata: Mapping[str, Any], **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Merge ``metadata`` into that of the session, which is created if need be.

        Args:
            metadata: JSON values by key. ``{}`` does nothing.
            **options: See `WriteOptions`.

        Returns:
            The ``metadata_set`` event; None if there was nothing to set.

        Raises:
            InvalidInput: A key or value cannot be stored; nothing was changed.
            VersionConflict: The session is not at ``expected_version``; nothing was changed.
        """
        fields = self._fields(options)
        changes = encode_changes(metadata, self._max_value_bytes)
        if not changes:
            return None
        command = SetMetadata(
            stream=self._stream,
            fact=SetMetadata.fact_of(changes),
            data_size=sum(len(text) for _, text, *_ in changes if text),
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
        """The metadata of the session, now or as it was.

        Args:
            keys: Which; None for all there are.
            as_of: A version of the session, a `Position` of the log, or an aware datetime.
            default: Stands for a key that is not there. Pass `MISSING` to tell it from null.

        Raises:
            InvalidPoint: ``as_of`` names no point in history, such as a naive datetime.
        """
        wanted = None if keys is None else check_keys(keys)
        view = self._view
        if as_of is not None:
            bound = past.bound_of(as_of)
            await self._connected()
            found = await past.metadata_as_of(view, self._stream, bound, wanted)
        else:
            await self._connected()
            found = await self._current_metadata(view, wanted)
        if wanted is None:
            return dict(sorted(found.items()))
        return {key: found.get(key, default) for key in wanted}

    async def _current_metadata(self, view: View, keys: Sequence[str] | None) -> dict[str, Any]:
        session_id = self.session_id
        if keys is None:
            rows = await view.look_up(view.reads.metadata, session_id=session_id)
        elif keys:
            lookup = view.reads.metadata_of_keys
            rows = await view.look_up(lookup, session_id=session_id, keys=keys)
        else:
            return {}
        return {key: parse(text) for _, key, text in rows}

    async def delete_metadata(
        self, keys: Sequence[str] | None = None, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Remove the given keys, or all.

        Returns:
            The ``metadata_deleted`` event, which names what was there to remove; None if nothing.
        """
        wanted = None if keys is None else check_keys(keys)
        command = DeleteMetadata(stream=self._stream, keys=wanted, **self._fields(options))
        return await self._submit(command, options)

    async def find_sessions_by_metadata(
        self,
        key: str,
        value: Any,
        limit: int | None = 100,
        *,
        after: str | None = None,
        as_of: int | Position | datetime | None = None,
    ) -> list[str]:
        """Ids of all sessions, not only this one, whose ``key`` equals ``value``.

        On behalf of a user: only of those that the user owns. See
        `MetadataStore.find_sessions_by_metadata`.
        """
        return await find_sessions(
            self._view, key, value, limit, after, as_of, create_tables=self._create_tables
        )

    # --- The past -------------------------------------------------------------------------------

    async def history(
        self, key: str | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[past.HistoryEntry]:
        """The session's events in order, each with the old and the new value of what it changed.

        Args:
            key: Only events that changed this key, and only that change of theirs.
            limit: At most so many.
            after: Only events after this version: the ``version`` of the last entry seen.
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
        bounds = past.bound_of(a), past.bound_of(b)
        view = self._view
        await self._connected()
        return await past.diff(view, self._stream, *bounds)
