"""What `MetadataStore` and `UserStore` have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta.core.canonical_json import dump_canonical, parse
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import InvalidIdentifier, InvalidInput, StoreClosed, ValueTooLarge
from eventmeta.core.events import BUILT_IN_TYPES, NewEvent, RecordedEvent, StreamKey
from eventmeta.core.large_inputs import encoded, is_large
from eventmeta.core.principal import Principal
from eventmeta.core.validation import check_count, check_event_type, check_session_id, check_types
from eventmeta.core.write_order import Turn
from eventmeta.log.commands import Append, Command, EventData
from eventmeta.log.commands.options import command_fields
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope


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
        """Return the arguments for a session: ``options``, completed with those of the store."""
        self._check_open()
        return {
            "engine": self._log.database.engine,
            "max_value_bytes": self._max_value_bytes,
            **self._limits._asdict(),
            **asdict(self._log.database.tables.names),
            **options,
        }

    async def append(
        self,
        stream_id: str,
        event: NewEvent,
        *,
        expected_version: int | None = None,
        connection: AsyncConnection | AsyncSession | None = None,
    ) -> RecordedEvent:
        """Record one of the app's own events in the stream of a session.

        Args:
            stream_id: The id of the session. The session itself need not exist. On behalf of a
                user it must exist, and the user must own it.
            event: The event; its type must not be one of the built-in types.
            expected_version: Append only if the stream is at this version (0: it is empty).
            connection: Append inside this transaction of the caller's.

        Raises:
            InvalidInput: The event cannot be recorded; its data may be larger than
                ``max_value_bytes``.
            AppendRejected: The stream is not at ``expected_version``, the event id was used for
                another event, or the user does not own such a session.
        """
        kind = check_event_type(_new_event(event).type)
        if kind in BUILT_IN_TYPES:
            raise InvalidIdentifier(
                "event type", kind, "is built in: use the method of the session that records it"
            )
        given = _object(event.data)
        stream = StreamKey(check_session_id(stream_id))
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
        self._check_open()

        async def record(turn: Turn | None = None) -> RecordedEvent:
            data, size = await encoded(given, lambda: _encoded(given, self._max_value_bytes))
            command = Append(stream=stream, fact=EventData(kind, data), data_size=size, **fields)
            recorded = await self._submit(command, connection, turn)
            assert recorded is not None
            return recorded

        if connection is None and is_large(given):
            async with self._log.order.turn(stream, self._limits) as turn:
                return await record(turn)
        return await record()

    async def events(
        self,
        after: int = 0,
        *,
        types: Collection[str] | None = None,
        stream: str | None = None,
        until: int | None = None,
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the events in the order of the log, up to the horizon when the iteration begins.

        No event is ever skipped: reading on later from the last position seen finds all events that
        have come since, including those that were being written meanwhile. On behalf of a user,
        only events of the user's own sessions and of the user are read.

        Args:
            after: The position of the last event already seen.
            types: Only events of these types.
            stream: Only events of this session.
            until: The last position to read.

        Raises:
            InvalidInput: An argument cannot be used.
            StoreClosed: This handle was closed meanwhile.
            StandbyServer: The feed can be read only on the primary. The events of one session can
                be read on a standby as well.
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
        """Return the highest position below which no event can appear any more.

        A reader that reads events up to the horizon and continues there, as `events` does, never
        skips an event.

        Raises:
            StandbyServer: Only the primary knows the horizon.
        """
        await self._connected()
        return await self._log.horizon()

    async def close(self) -> None:
        """Wait until all submitted writes are done; this handle accepts no more.

        A loop that reads events through this handle gets `StoreClosed` at the next event.
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

    async def _submit(
        self,
        command: Command,
        connection: AsyncConnection | AsyncSession | None,
        turn: Turn | None = None,
    ) -> RecordedEvent | None:
        if connection is None:
            if turn is None and self._log.order.is_kept(command.stream):
                async with self._log.order.turn(command.stream, self._limits) as turn:
                    return await self._submit(command, connection, turn)
            await self._connected()
        return await self._log.submit(command, connection, self._limits, turn)

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
    """Return ``data`` as the log keeps it, and its size in bytes of JSON."""
    text = dump_canonical(data, "data")
    if (size := len(text.encode())) > max_bytes:
        raise ValueTooLarge("data", size, max_bytes)
    return parse(text), size


def _object(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"the data of an event is a {type(data).__name__}; give a dict")
    return dict(cast("Mapping[str, Any]", data))
