"""`MetadataStore`: one engine's sessions, as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from types import TracebackType
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from eventmeta.codec import DEFAULT_MAX_VALUE_BYTES, canonical, parse
from eventmeta.commands import Append, Fact, StreamKey
from eventmeta.database import Database
from eventmeta.errors import InvalidIdentifier, InvalidInput, StoreClosed, ValueTooLarge
from eventmeta.events import BUILT_IN_TYPES, NewEvent, RecordedEvent
from eventmeta.identifiers import check_count, check_event_type, check_session_id
from eventmeta.options import command_fields
from eventmeta.projector import Difference, differences, name_differences
from eventmeta.search import find_sessions
from eventmeta.session import MetadataSession
from eventmeta.tables import TableNames


class MetadataStore:
    """The store of one engine: its sessions, its log, its read models.

    Stores and sessions of one engine, with the same table names, share one writer.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        session_metadata_table: str = "agent_sessions_metadata",
        events_table: str = "agent_events",
        streams_table: str = "agent_streams",
        metadata_changes_view: str = "agent_metadata_changes",
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
    ) -> None:
        """Open the store; no I/O is done before the first call.

        Args:
            engine: See `MetadataSession`.
            sessions_table: Upstream's table of sessions.
            messages_table: Upstream's table of items.
            session_metadata_table: The table of current metadata.
            events_table: The log.
            streams_table: The heads of the log's streams.
            metadata_changes_view: The view of the log, one row per changed key.
            max_value_bytes: The largest metadata value, in bytes of JSON.

        Raises:
            InvalidIdentifier: A table name cannot be used.
            UnsupportedEngine: There is no dialect for the engine.
        """
        names = TableNames(
            sessions=sessions_table,
            messages=messages_table,
            session_metadata=session_metadata_table,
            events=events_table,
            streams=streams_table,
            metadata_changes=metadata_changes_view,
        )
        self._database = Database.of(engine, names)
        self._max_value_bytes = max_value_bytes
        self._owns_engine = False
        self._closed = False

    @classmethod
    def from_url(
        cls, url: str, *, engine_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> MetadataStore:
        """Open the store in the database at ``url``, with an engine of its own.

        Args:
            url: Such as ``"sqlite+aiosqlite:///sessions.db"``.
            engine_kwargs: Passed to ``create_async_engine``.
            **kwargs: Passed to the constructor.
        """
        store = cls(create_async_engine(url, **(engine_kwargs or {})), **kwargs)
        store._owns_engine = True
        return store

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for the app's own statements."""
        return self._database.engine

    @property
    def database(self) -> Database:
        """What this store shares with its sessions: tables, log, writer and reader."""
        return self._database

    async def create_tables(self) -> None:
        """Create the tables, indexes, triggers and the view that are missing.

        Safe to repeat, and beside other processes; existing tables and rows are left as they are.
        """
        self._check_open()
        await self._database.create_tables()

    def session(self, session_id: str, **kwargs: Any) -> MetadataSession:
        """The session ``session_id``; ``kwargs`` as for `MetadataSession`."""
        self._check_open()
        names = self._database.tables.names
        return MetadataSession(
            session_id,
            engine=self.engine,
            sessions_table=names.sessions,
            messages_table=names.messages,
            session_metadata_table=names.session_metadata,
            events_table=names.events,
            streams_table=names.streams,
            metadata_changes_view=names.metadata_changes,
            max_value_bytes=self._max_value_bytes,
            **kwargs,
        )

    async def find_sessions_by_metadata(
        self, key: str, value: Any, limit: int | None = 100, *, after: str | None = None
    ) -> list[str]:
        """Ids of the sessions whose ``key`` equals ``value`` as JSON: 1 equals 1.0, but not true.

        Args:
            key: The metadata key.
            value: Any JSON value.
            limit: At most so many; None for all.
            after: A cursor: only ids that come after this one in the database's order. Pass the
                last id of a page to get the next.
        """
        return await find_sessions(self._database, key, value, limit, after)

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
            stream_id: The session's id. The session itself need not exist.
            event: What happened; its type must not be one of the built-in ones.
            expected_version: Append only if the stream is at this version (0: it is empty).
            connection: Append inside this transaction of the caller's.

        Raises:
            InvalidInput: The event cannot be recorded.
            AppendRejected: The stream has moved on, or the event id belongs to another event.
        """
        kind = check_event_type(event.type)
        if kind in BUILT_IN_TYPES:
            raise InvalidIdentifier(
                "event type", kind, "is built in: use the method of the session that records it"
            )
        data = canonical(_object(event.data), "data")
        limit = self._max_value_bytes
        if len(data) > limit:
            raise ValueTooLarge("data", len(data.encode()), limit)
        fields = command_fields(
            {
                "expected_version": expected_version,
                "actor": event.actor,
                "event_id": event.event_id,
            },
            event.context,
        )
        command = Append(
            stream=StreamKey(check_session_id(stream_id)),
            fact=Fact(kind, parse(data)),
            data_size=len(data),
            **fields,
        )
        self._check_open()
        if connection is None:
            await self._connected()
        recorded = await self._database.submit(command, connection)
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
        come since, also what was being written meanwhile.

        Args:
            after: The position of the last event already seen.
            types: Only events of these types.
            stream: Only events of this session.
            until: The last position to read.
        """
        key = None if stream is None else StreamKey(check_session_id(stream))
        if isinstance(types, str):
            raise InvalidInput(f"types is the string {types!r}; give a list: [{types!r}]")
        kinds = None if types is None else [check_event_type(kind) for kind in types]
        check_count("after", after)
        if until is not None:
            check_count("until", until)
        await self._connected()
        async for event in self._database.log.read_all(after, until=until, types=kinds, stream=key):
            yield event

    async def horizon(self) -> int:
        """The highest position below which no event can appear any more.

        Reading events up to it and going on from it, as `events` does, never skips one.
        """
        await self._connected()
        return await self._database.log.horizon()

    async def close(self) -> None:
        """Wait until what was submitted is carried out; this handle takes no more.

        An engine that was passed in is left open, with the other stores and the sessions on it. One
        made by `from_url` is disposed, and its sessions end too.
        """
        self._closed = True
        if self._owns_engine:
            await self._database.close()
            await self.engine.dispose()
        else:
            await self._database.drain()

    async def __aenter__(self) -> MetadataStore:
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

    async def _connected(self) -> None:
        self._check_open()
        await self._database.connect(create=False)


async def verify_projection(store: MetadataStore) -> list[Difference]:
    """Compare each read model with the fold of the whole log.

    Returns:
        The rows on which they disagree, which is none unless someone wrote to a table by hand.
    """
    database = store.database
    await database.connect(create=False)
    found: list[Difference] = []
    for projection in database.tables.projections:
        rows = await database.log.read(differences(projection, database.log.events()))
        found += name_differences(projection, rows)
    return found


def _object(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"the data of an event is a {type(data).__name__}; give a dict")
    return dict(cast("Mapping[str, Any]", data))
