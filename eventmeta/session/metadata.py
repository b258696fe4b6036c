"""The metadata of a session, and finding sessions by their metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from eventmeta.core.canonical_json import Change, parse
from eventmeta.core.events import Position
from eventmeta.core.large_inputs import LARGE_TEXT
from eventmeta.dialects.statement import Row
from eventmeta.log.commands import Command, DeleteMetadata, SetMetadata
from eventmeta.queries.scope import Scope
from eventmeta.queries.sessions import find_sessions
from eventmeta.session.handle import SessionHandle


class SessionMetadata(SessionHandle):
    """A session with its metadata."""

    async def find_sessions_by_metadata(
        self,
        key: str,
        value: Any,
        limit: int | None = 100,
        *,
        after: str | None = None,
        as_of: int | Position | datetime | None = None,
    ) -> list[str]:
        """Return the ids of all sessions, not only this one, whose ``key`` equals ``value``.

        On behalf of a user, only sessions that the user owns are found. See
        `MetadataStore.find_sessions_by_metadata`.
        """
        return await find_sessions(
            self._view, key, value, limit, after, as_of, create_tables=self._create_tables
        )

    def _setting(self, changes: list[Change], fields: dict[str, Any]) -> Command:
        return SetMetadata(
            stream=self._stream,
            fact=SetMetadata.fact_of(changes),
            data_size=sum(len(text) for _, text, *_ in changes if text),
            **fields,
        )

    def _deleting(self, keys: Sequence[str] | None, fields: dict[str, Any]) -> Command:
        return DeleteMetadata(stream=self._stream, keys=keys, **fields)

    async def _current_metadata(self, view: Scope, keys: Sequence[str] | None) -> dict[str, Any]:
        session_id = self.session_id
        if keys is None:
            rows = await view.group_read(view.reads.metadata, session_id=session_id)
        elif keys:
            lookup = view.reads.metadata_of_keys
            rows = await view.group_read(lookup, session_id=session_id, keys=keys)
        else:
            return {}
        if sum([len(text) for _, _, text in rows]) > LARGE_TEXT:
            return await asyncio.to_thread(_parsed, rows)
        return _parsed(rows)


def _parsed(rows: Sequence[Row]) -> dict[str, Any]:
    return {key: parse(text) for _, key, text in rows}
