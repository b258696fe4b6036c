"""`MetadataSession`: upstream's SQLAlchemySession, and what is known about the session."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack, cast

from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import history as past
from eventmeta.codec import (
    DEFAULT_MAX_VALUE_BYTES,
    check_key,
    encode_changes,
    parse,
    text_problem,
)
from eventmeta.commands import (
    AddItems,
    ClearSession,
    Command,
    DeleteMetadata,
    PopItem,
    ReplaceItems,
    SetMetadata,
    StreamKey,
)
from eventmeta.compaction import CompactionSnapshot, take_snapshot
from eventmeta.database import Database, shared_engine
from eventmeta.errors import InvalidInput
from eventmeta.events import Position, RecordedEvent
from eventmeta.identifiers import check_session_id
from eventmeta.options import WriteOptions, command_fields
from eventmeta.search import find_sessions
from eventmeta.tables import TableNames

if TYPE_CHECKING:
    from agents import TResponseInputItem
    from agents.memory import SessionSettings


class MetadataSession:
    """A conversation with its metadata, and the history of both.

    Takes the place of ``agents.extensions.memory.SQLAlchemySession``: same arguments, same tables,
    same rows. Every write is durable and visible to all processes when its call returns; a call
    that fails has changed nothing, and a cancelled one raises only when its outcome is settled. All
    sessions of an engine share one writer, which commits what arrives together in one transaction.
    """

    def __init__(
        self,
        session_id: str,
        *,
        engine: AsyncEngine,
        create_tables: bool = False,
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        session_settings: SessionSettings | dict[str, Any] | None = None,
        ensure_ascii: bool = True,
        session_metadata_table: str = "agent_sessions_metadata",
        events_table: str = "agent_events",
        streams_table: str = "agent_streams",
        metadata_changes_view: str = "agent_metadata_changes",
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        clear_keeps_metadata: bool = False,
    ) -> None:
        """Open the session; no I/O is done before the first call.

        Args:
            session_id: Which conversation; at most 255 bytes.
            engine: An async engine on aiosqlite, asyncpg, asyncmy or aiomysql. It is configured on
                its next connections: WAL, full durability and foreign keys on SQLite, a binary
                collation on MySQL.
            create_tables: Create missing tables at the first call.
            sessions_table: Upstream's table of sessions.
            messages_table: Upstream's table of items.
            session_settings: Upstream's settings: the default ``limit`` of `get_items`.
            ensure_ascii: Escape non-ASCII text in stored items, as upstream does by default.
            session_metadata_table: The table of current metadata.
            events_table: The log.
            streams_table: The heads of the log's streams.
            metadata_changes_view: The view of the log, one row per changed key.
            max_value_bytes: The largest metadata value, in bytes of JSON.
            clear_keeps_metadata: What `clear_session` does by default. Say True where a wrapper
                clears the session only to write it anew, such as a manual compaction by
                ``OpenAIResponsesCompactionSession`` around an ``EncryptedSession``.

        Raises:
            InvalidIdentifier: The session id or a table name cannot be used.
            UnsupportedEngine: There is no dialect for the engine.
        """
        self.session_id = check_session_id(session_id)
        names = TableNames(
            sessions=sessions_table,
            messages=messages_table,
            session_metadata=session_metadata_table,
            events=events_table,
            streams=streams_table,
            metadata_changes=metadata_changes_view,
        )
        self._database = Database.of(engine, names, max_value_bytes)
        self._stream = StreamKey(self.session_id)
        self._create_tables = create_tables
        self._ensure_ascii = ensure_ascii
        self._clear_keeps_metadata = clear_keeps_metadata
        self.session_settings = session_settings

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str,
        engine_kwargs: dict[str, Any] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> MetadataSession:
        """Open the session in the database at ``url``.

        Sessions of one URL, one thread and the same ``engine_kwargs`` share an engine, except for
        in-memory databases, of which each session gets its own, as upstream does it.

        Args:
            session_id: Which conversation.
            url: Such as ``"postgresql+asyncpg://user:password@host/database"``.
            engine_kwargs: Passed to ``create_async_engine``.
            session_settings: As for the constructor.
            **kwargs: Passed to the constructor.
        """
        engine = shared_engine(url, engine_kwargs)
        return cls(session_id, engine=engine, session_settings=session_settings, **kwargs)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for the app's own statements."""
        return self._database.engine

    @property
    def session_settings(self) -> SessionSettings | None:
        """Upstream's settings of this session."""
        if self._session_settings is None:
            self.session_settings = {}
        return self._session_settings

    @session_settings.setter
    def session_settings(self, value: SessionSettings | dict[str, Any] | None) -> None:
        if isinstance(value, Mapping):
            from agents.memory import SessionSettings

            value = SessionSettings(**value)
        self._session_settings = value

    async def _serialize_item(self, item: TResponseInputItem) -> str:
        """The text that is stored for ``item``; subclasses may override it."""
        return json.dumps(item, ensure_ascii=self._ensure_ascii, separators=(",", ":"))

    async def _deserialize_item(self, item: str) -> TResponseInputItem:
        """The item of a stored text; subclasses may override it."""
        return cast("TResponseInputItem", json.loads(item))

    # --- Items ----------------------------------------------------------------------------------

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items of the conversation in order, or the latest ``limit`` of them.

        Args:
            limit: How many; ``session_settings.limit`` if None, all if that is None too. Rows that
                hold no item are skipped and do not count.
        """
        if limit is None and self._session_settings is not None:
            limit = self._session_settings.limit
        await self._connected()
        queries = self._database.queries
        if limit is None:
            rows = await self._database.fetch(queries.items(session_id=self.session_id))
            return await self._items(row[0] for row in rows)
        if limit <= 0:
            return []
        window = limit
        while True:
            query = queries.last_items(session_id=self.session_id, limit=window)
            rows = await self._database.fetch(query)
            items = await self._items(row[0] for row in reversed(rows))
            if len(items) >= limit or len(rows) < window:
                return items[-limit:]
            window *= 2

    async def add_items(
        self, items: list[TResponseInputItem], **options: Unpack[WriteOptions]
    ) -> Any:
        """Add items to the end of the conversation, all or none, in this order.

        Returns:
            The ``items_added`` `RecordedEvent` with the ids of their rows; None if there are no
            items. (Typed as Any, as for upstream's protocol it would have to be None.)
        """
        fields = command_fields(options)
        if not items:
            return None
        texts = await self._texts(items)
        return await self._submit(AddItems(stream=self._stream, items=texts, **fields), options)

    async def pop_item(self, **options: Unpack[WriteOptions]) -> TResponseInputItem | None:
        """Remove the latest item and return it; None if there is none.

        Rows that hold no item are removed on the way.

        Raises:
            ItemAlreadyPopped: The ``event_id`` was used before; the content of the item which that
                attempt removed is not stored any more.
        """
        fields = command_fields(options)
        while True:
            command = PopItem(stream=self._stream, **fields)
            await self._submit(command, options)
            if command.popped is None:
                return None
            try:
                return await self._deserialize_item(command.popped[1])
            except (json.JSONDecodeError, TypeError):
                fields = command_fields({**options, "event_id": None, "expected_version": None})

    async def clear_session(
        self, *, keep_metadata: bool | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Remove all items, and the metadata unless ``keep_metadata``. The history stays.

        Args:
            keep_metadata: Whether the metadata stays; if None, as ``clear_keeps_metadata`` says.
            **options: See `WriteOptions`.

        Returns:
            The ``session_cleared`` `RecordedEvent`; None if there was nothing to clear. (Typed as
            Any, as for `add_items`.)
        """
        if keep_metadata is None:
            keep_metadata = self._clear_keeps_metadata
        command = ClearSession(
            stream=self._stream, keep_metadata=keep_metadata, **command_fields(options)
        )
        return await self._submit(command, options)

    # --- Metadata -------------------------------------------------------------------------------

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
        fields = command_fields(options)
        if not isinstance(metadata, Mapping):
            raise InvalidInput(f"metadata is a {type(metadata).__name__}; give a dict")
        changes = encode_changes(metadata, self._database.max_value_bytes)
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
        wanted = None if keys is None else _checked(keys)
        if as_of is not None:
            bound = past.bound_of(as_of)
            await self._connected()
            found = await past.metadata_as_of(self._database, self._stream, bound, wanted)
        else:
            await self._connected()
            found = await self._current_metadata(wanted)
        if wanted is None:
            return found
        return {key: found.get(key, default) for key in wanted}

    async def _current_metadata(self, keys: Sequence[str] | None) -> dict[str, Any]:
        queries, session_id = self._database.queries, self.session_id
        if keys is None:
            rows = await self._database.fetch(queries.metadata, {"session_id": session_id})
        elif keys:
            wanted = [{"session_id": session_id, "key": key} for key in keys]
            rows = await self._database.fetch(queries.metadata_of_keys, *wanted)
        else:
            return {}
        return {key: parse(text) for key, text in sorted(tuple(row)[1:] for row in rows)}

    async def delete_metadata(
        self, keys: Sequence[str] | None = None, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Remove the given keys, or all.

        Returns:
            The ``metadata_deleted`` event, which names what was there to remove; None if nothing.
        """
        wanted = None if keys is None else _checked(keys)
        command = DeleteMetadata(stream=self._stream, keys=wanted, **command_fields(options))
        return await self._submit(command, options)

    async def find_sessions_by_metadata(
        self, key: str, value: Any, limit: int | None = 100, *, after: str | None = None
    ) -> list[str]:
        """Ids of all sessions, not only this one, whose ``key`` equals ``value``.

        See `MetadataStore.find_sessions_by_metadata`.
        """
        return await find_sessions(
            self._database, key, value, limit, after, create_tables=self._create_tables
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
        await self._connected()
        return await past.history(self._database, self._stream, page)

    async def diff(
        self, a: int | Position | datetime, b: int | Position | datetime
    ) -> dict[str, past.ValueChange]:
        """The keys whose values differ between two versions, positions or times.

        Raises:
            InvalidPoint: ``a`` or ``b`` names no point in history.
        """
        bounds = past.bound_of(a), past.bound_of(b)
        await self._connected()
        return await past.diff(self._database, self._stream, *bounds)

    # --- Compaction -----------------------------------------------------------------------------

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Upstream's compaction replaces the whole history through this, in one transaction."""
        if self._transforms_items():
            return False
        texts = await self._texts(items)
        command = ReplaceItems(
            stream=self._stream, expected=None, items=texts, **command_fields({})
        )
        await self._submit(command, {})
        return command.replaced

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Any = None
    ) -> CompactionSnapshot | None:
        """Upstream's compaction replaces the end of the history through this."""
        if self._transforms_items():
            return None
        await self._connected()
        return await take_snapshot(self, limit, prune_prefix)

    def _transforms_items(self) -> bool:
        """Whether a subclass reads or adds items in its own way, which must not be bypassed."""
        mine = type(self)
        return (mine.get_items, mine.add_items) != (
            MetadataSession.get_items,
            MetadataSession.add_items,
        )

    # --------------------------------------------------------------------------------------------

    async def _connected(self) -> None:
        await self._database.connect(create=self._create_tables)

    async def _submit(self, command: Command, options: WriteOptions) -> RecordedEvent | None:
        await self._connected()
        return await self._database.submit(command, options.get("connection"))

    async def _texts(self, items: Sequence[TResponseInputItem]) -> list[str]:
        """What is stored for ``items``.

        Raises:
            InvalidInput: A database would refuse or alter the text.
        """
        texts = []
        for index, item in enumerate(items):
            text = await self._serialize_item(item)
            if problem := text_problem(text):
                raise InvalidInput(f"items[{index}]: its text {problem}")
            texts.append(text)
        return texts

    async def _items(self, texts: Iterable[str]) -> list[TResponseInputItem]:
        items = []
        for text in texts:
            try:
                items.append(await self._deserialize_item(text))
            except (json.JSONDecodeError, TypeError):
                continue
        return items


def _checked(keys: Sequence[str]) -> list[str]:
    if isinstance(keys, str):
        raise InvalidInput(f"keys is the string {keys!r}; give a list: [{keys!r}]")
    return list(dict.fromkeys(check_key(key) for key in keys))
