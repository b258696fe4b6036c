"""What every handle on a store can do, as far as whoever uses it reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta.core.canonical_json import dump_canonical, parse
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import InvalidIdentifier, InvalidInput, StoreClosed, ValueTooLarge
from eventmeta.core.events import BUILT_IN_TYPES, NewEvent, Position, RecordedEvent, StreamKey
from eventmeta.core.large_inputs import encoded
from eventmeta.core.principal import Principal
from eventmeta.core.usage import GroupedUsage
from eventmeta.core.validation import check_count, check_event_type, check_session_id, check_types
from eventmeta.log.commands import Append, EventData
from eventmeta.log.commands.options import command_fields
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope
from eventmeta.queries.sessions import find_sessions
from eventmeta.queries.usage import (
    UsageGroup,
    check_group,
    check_structured,
    check_time,
    grouped_usage,
)


class StoreHandle:
    """A store, opened on behalf of the administrator or of a user."""

    def __init__(
        self, log: EventLog, access: Principal, max_value_bytes: int, limits: Limits
    ) -> None:
        self._log = log
        self._view = Scope(log.database, access, limits)
        self._max_value_bytes = max_value_bytes
        self._limits = limits
        self._closed = False

    def _opening(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a session of this store is opened with: ``options``, and what they lack."""
        self._check_open()
        return {
            "engine": self._log.database.engine,
            "max_value_bytes": self._max_value_bytes,
            **self._limits._asdict(),
            **asdict(self._log.database.tables.names),
            **options,
        }

    async def find_sessions_by_metadata(
        self,
        key: str,
        value: Any,
        limit: int | None = 100,
        *,
        after: str | None = None,
        as_of: int | Position | datetime | None = None,
    ) -> list[str]:
        """Ids of the sessions whose ``key`` equals ``value`` as JSON: 1 equals 1.0, but not true.

        On behalf of a user: only of those that the user owns.

        Args:
            key: The metadata key.
            value: Any JSON value.
            limit: At most so many; None for all.
            after: A cursor: only ids that come after this one in the database's order. Pass the
                last id of a page to get the next.
            as_of: Those of which that was so at a position of the log, or at an aware datetime.
                This goes through the log; the present is read from an index.

        Raises:
            InvalidInput: An argument cannot be used, or ``as_of`` names no point in history.
        """
        self._check_open()
        return await find_sessions(self._view, key, value, limit, after, as_of)

    async def get_usage(
        self,
        group_by: UsageGroup | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[GroupedUsage]:
        """What runs have used, summed up by the database.

        On behalf of a user: only in the sessions that the user owns.

        Args:
            group_by: ``"user"``, ``"agent"``, ``"model"``, ``"day"`` (in UTC) or ``"session"``; one
                sum of all if None. The user is the one whom the session's handle was bound to, else
                the session's owner. Agent and model are known where `UsageHooks` are installed.
            since: Only what was recorded from this time on.
            until: Only what was recorded before this time.

        Returns:
            A `GroupedUsage` per group, in the order of their keys.

        Raises:
            InvalidInput: ``group_by`` is not known, or a time is naive.
            StructuredMetadataOff: The table of tokens used is not kept.
        """
        group = check_group(group_by)
        times = check_time("since", since), check_time("until", until)
        await check_structured(self._log.database, "get_usage()")
        await self._connected()
        return await grouped_usage(self._view, group, *times)

    async def append(
        self,
        stream_id: str,
        event: NewEvent,
        *,
        expected_version: int | None = None,
        connection: AsyncConnection | AsyncSession | None = None,
    ) -> RecordedEvent:
        """Record an event of the app's own in the stream of a session.

        Args:
            stream_id: The session's id. The session itself need not exist, except for a user, who
                must own it.
            event: What happened; its type must not be one of the built-in ones.
            expected_version: Append only if the stream is at this version (0: it is empty).
            connection: Append inside this transaction of the caller's.

        Raises:
            InvalidInput: The event cannot be recorded; its data may have ``max_value_bytes``.
            AppendRejected: The stream has moved on, the event id belongs to another event, or
                there is no such session for the user.
        """
        kind = check_event_type(_new_event(event).type)
        if kind in BUILT_IN_TYPES:
            raise InvalidIdentifier(
                "event type", kind, "is built in: use the method of the session that records it"
            )
        given = _object(event.data)
        data, size = await encoded(given, lambda: _encoded(given, self._max_value_bytes))
        fields = command_fields(
            "append()",
            {
                "expected_version": expected_version,
                "actor": event.actor,
                "event_id": event.event_id,
                "connection": connection,
            },
            self._view.access,
            event.context,
        )
        command = Append(
            stream=StreamKey(check_session_id(stream_id)),
            fact=EventData(kind, data),
            data_size=size,
            **fields,
        )
        self._check_open()
        if self._log.order.is_kept(command.stream):
            await self._log.order.wait(command.stream)
        if connection is None:
            await self._connected()
        recorded = await self._log.submit(command, connection, self._limits)
        assert recorded is not None
        return recorded

    async def events(
        self,
        after: int = 0,
        *,
        types: Collection[str] | None = None,
        stream: str | None = None,
        until: int | None = None,
    ) -> AsyncIterator[RecordedEvent]:
        """The events in the order of the log, up to what is complete when the iteration begins.

        Never skips an event: going on later from the last position seen finds everything that has
        come since, also what was being written meanwhile. On behalf of a user: only events of the
        user's own sessions and of the user.

        Args:
            after: The position of the last event already seen.
            types: Only events of these types.
            stream: Only events of this session.
            until: The last position to read.

        Raises:
            InvalidInput: An argument cannot be used.
            StoreClosed: This handle was closed meanwhile.
            StandbyServer: The feed is to be read on the primary; one session's events are not
                refused.
        """
        key = None if stream is None else StreamKey(check_session_id(stream))
        kinds = check_types(types)
        check_count("after", after)
        if until is not None:
            check_count("until", until)
        await self._connected()
        log, view = self._log, self._view
        async for event in log.read_all(
            after,
            until=until,
            types=kinds,
            stream=key,
            conditions=view.reads.ownership.of_events(log.database.tables.events),
            **view.owner,
        ):
            self._check_open()
            yield event

    async def horizon(self) -> int:
        """The highest position below which no event can appear any more.

        Reading events up to it and going on from it, as `events` does, never skips one.

        Raises:
            StandbyServer: Only the primary can tell.
        """
        await self._connected()
        return await self._log.horizon()

    async def close(self) -> None:
        """Wait until what was submitted is carried out; this handle takes no more.

        Whoever is reading events through it gets `StoreClosed` with the next one.
        """
        self._closed = True
        await self._log.drain()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed
        self._log.database.dialect.check_options()

    async def _connected(self) -> None:
        self._check_open()
        await self._log.database.opening.connect(create=False, limits=self._limits)


def _new_event(event: object) -> NewEvent:
    if not isinstance(event, NewEvent):
        raise InvalidInput(
            f"the event is a {type(event).__name__}: give NewEvent(type, data), such as "
            'NewEvent("ticket_opened", {"number": 12})'
        )
    return event


def _encoded(data: dict[str, Any], max_bytes: int) -> tuple[dict[str, Any], int]:
    """Return ``data`` as the log keeps it, and how long that is."""
    text = dump_canonical(data, "data")
    if (size := len(text.encode())) > max_bytes:
        raise ValueTooLarge("data", size, max_bytes)
    return parse(text), size


def _object(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"the data of an event is a {type(data).__name__}; give a dict")
    return dict(cast("Mapping[str, Any]", data))
