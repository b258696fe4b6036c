"""A session by its id, opened on an engine: the base of all other parts of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.canonical_json import DEFAULT_MAX_VALUE_BYTES
from eventmeta.core.deadline import DEFAULT_RETRY_FOR, DEFAULT_TIMEOUT
from eventmeta.core.errors import InvalidInput
from eventmeta.core.events import StreamKey
from eventmeta.core.validation import check_flag, check_limits, check_positive, check_session_id
from eventmeta.database.engines import shared_engine
from eventmeta.log.commands.options import check_options, check_table_options, options_of
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope
from eventmeta.session.arguments import UrlOptions
from eventmeta.session.binding import Binding, UserFrom
from eventmeta.session.stream_metadata import StreamMetadata
from eventmeta.tables.names import TableNames, TableOptions

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from agents.memory import SessionSettings


class SessionHandle(StreamMetadata):
    """A session by its id, opened on an engine."""

    def __init__(
        self,
        session_id: str,
        *,
        engine: AsyncEngine,
        create_tables: bool = False,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        ensure_ascii: bool = True,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        retry_for: float = DEFAULT_RETRY_FOR,
        clear_keeps_metadata: bool = False,
        user_id: str | None = None,
        claim: bool = True,
        user_from: UserFrom | None = None,
        **table_names: Unpack[TableOptions],
    ) -> None:
        """Open the session; no I/O is done before the first call.

        Args:
            session_id: The id of the conversation; at most 255 bytes.
            engine: An async engine on aiosqlite, asyncpg or asyncmy. Its next connections are
                configured: WAL, full durability and foreign keys on SQLite, a binary collation on
                MySQL.
            create_tables: Create missing tables at the first call.
            session_settings: Upstream's settings, which give the default ``limit`` of `get_items`.
            ensure_ascii: Escape non-ASCII text in stored items, as upstream does by default.
            max_value_bytes: The maximum size of a metadata value, in bytes of JSON.
            timeout: How many seconds a call waits for the database: see `MetadataStore`.
            retry_for: For how many seconds to try again if the server refuses connections or has
                none left.
            clear_keeps_metadata: Whether `clear_session` keeps the metadata by default. Pass True
                if a wrapper clears the session only to write it again, such as a manual compaction
                by ``OpenAIResponsesCompactionSession`` around an ``EncryptedSession``.
            user_id: The user on whose behalf the session is used. Only what this user may see is
                read and written; a session of another user behaves as if it did not exist. If
                None, everything is visible.
            claim: Let the user also see a session that never had an owner; the first write makes
                it the user's. If False, the user sees only sessions that the user owns.
            user_from: A function that returns the user's id from the context of a run, such as
                ``lambda context: context.user_id``. The first run that uses the session binds it
                to that user.
            **table_names: See `TableOptions`.

        Raises:
            InvalidIdentifier: The session id, the user id or a table name cannot be used.
            InvalidInput: ``timeout`` or ``retry_for`` is not a number of seconds.
            UnknownOption: An option does not exist.
            UnsupportedEngine: No dialect supports the engine.
        """
        self.session_id = check_session_id(session_id)
        check_table_options(type(self), table_names)
        check_flag("create_tables", create_tables)
        check_flag("ensure_ascii", ensure_ascii)
        check_flag("clear_keeps_metadata", clear_keeps_metadata)
        check_positive("max_value_bytes", max_value_bytes)
        self._limits = check_limits(timeout, retry_for)
        self._log = EventLog.of(engine, TableNames.of(table_names))
        self._max_value_bytes = max_value_bytes
        self._binding = Binding(user_id, claim=claim, user_from=user_from)
        self._stream = StreamKey(self.session_id)
        self._create_tables = create_tables
        self._ensure_ascii = ensure_ascii
        self._clear_keeps_metadata = clear_keeps_metadata
        self._session_settings: SessionSettings | None
        self.session_settings = cast("SessionSettings | None", session_settings)

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str,
        engine_kwargs: dict[str, Any] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        **kwargs: Unpack[UrlOptions],
    ) -> Self:
        """Open the session in the database at ``url``.

        Sessions of one URL, one thread and the same ``engine_kwargs`` share an engine. In-memory
        databases are not shared: each session gets its own, as with upstream.

        Args:
            session_id: The id of the conversation.
            url: A URL such as ``"postgresql+asyncpg://user:password@host/database"``.
            engine_kwargs: Keyword arguments for ``create_async_engine``.
            session_settings: As for the constructor.
            **kwargs: As for the constructor.

        Raises:
            InvalidInput: An argument or an option cannot be used, or the URL cannot be read.
            MissingExtra: The driver is not installed.
            UnsupportedEngine: No dialect supports the database or the driver.
        """
        check_options(f"{cls.__name__}.from_url()", kwargs, options_of(cls))
        engine = shared_engine(url, engine_kwargs)
        return cls(session_id, engine=engine, session_settings=session_settings, **kwargs)

    @property
    def engine(self) -> AsyncEngine:
        """Return the engine, for the app's own statements."""
        return self._log.database.engine

    @property
    def user_id(self) -> str | None:
        """Return the user to whom the session is bound; None if there is none."""
        return self._binding.user_id

    if TYPE_CHECKING:
        # Upstream's protocol requires an attribute. A type checker rejects a property there.
        session_settings: SessionSettings | None
    else:

        @property
        def session_settings(self) -> SessionSettings | None:
            """Return upstream's settings of this session."""
            if self._session_settings is None:
                self.session_settings = {}
            return self._session_settings

        @session_settings.setter
        def session_settings(self, value: SessionSettings | dict[str, Any] | None) -> None:
            if isinstance(value, Mapping):
                from agents.memory import SessionSettings

                try:
                    value = SessionSettings(**value)
                except (TypeError, ValueError) as error:
                    raise InvalidInput(f"session_settings cannot be used: {error}") from None
            elif value is not None and not hasattr(value, "limit"):
                raise InvalidInput(
                    f"session_settings is a {type(value).__name__}; give a dict or SessionSettings"
                )
            self._session_settings = value

    def _bind(self, wrapper: RunContextWrapper[Any] | None) -> None:
        self._binding.bind(wrapper)

    @property
    def _view(self) -> Scope:
        return Scope(self._log.database, self._binding.access, self._limits)

    async def _connected(self) -> None:
        await self._log.database.opening.connect(create=self._create_tables, limits=self._limits)

    async def _last_rows(
        self, limit: int, connection: AsyncConnection | None = None
    ) -> list[tuple[str, int]]:
        """Return the text and the id of the session's last items, the latest first.

        Args:
            limit: The maximum number of items.
            connection: Read in this transaction of the caller's.
        """
        view = self._view
        wanted = {"session_id": self.session_id, "limit": limit}
        rows = await view.group_read(view.reads.last_items, connection, **wanted)
        return [(text, item_id) for _, text, item_id in rows]
