"""Which session, in which database: what every part of a session starts from."""

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
from eventmeta.log.commands.options import check_options, options_of
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
            session_id: Which conversation; at most 255 bytes.
            engine: An async engine on aiosqlite, asyncpg or asyncmy. It is configured on its next
                connections: WAL, full durability and foreign keys on SQLite, a binary
                collation on MySQL.
            create_tables: Create missing tables at the first call.
            session_settings: Upstream's settings: the default ``limit`` of `get_items`.
            ensure_ascii: Escape non-ASCII text in stored items, as upstream does by default.
            max_value_bytes: The largest metadata value, in bytes of JSON.
            timeout: How many seconds a call waits for the database: see `MetadataStore`.
            retry_for: How many seconds to look for a server that refuses connections, or has none
                left.
            clear_keeps_metadata: What `clear_session` does by default. Say True where a wrapper
                clears the session only to write it anew, such as a manual compaction by
                ``OpenAIResponsesCompactionSession`` around an ``EncryptedSession``.
            user_id: On whose behalf: only what is within this user's reach is read and written, and
                a session of someone else is as if it were not there. Everything is if None.
            claim: A session that never had an owner is within reach, and becomes the user's with
                the first write. If False, only sessions that the user owns are.
            user_from: Finds the user in the context of the run that uses the session first, which
                is bound to that user from then on: ``lambda context: context.user_id``.
            **table_names: See `TableOptions`.

        Raises:
            InvalidIdentifier: The session id, the user id or a table name cannot be used.
            InvalidInput: ``timeout`` or ``retry_for`` is no number of seconds.
            UnknownOption: There is no such option.
            UnsupportedEngine: There is no dialect for the engine.
        """
        self.session_id = check_session_id(session_id)
        if table_names.keys() - TableOptions.__annotations__.keys():
            kind = type(self)
            check_options(f"{kind.__name__}()", table_names, options_of(kind))
        flags = {
            "create_tables": create_tables,
            "ensure_ascii": ensure_ascii,
            "clear_keeps_metadata": clear_keeps_metadata,
        }
        for name, value in flags.items():
            check_flag(name, value)
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

        Sessions of one URL, one thread and the same ``engine_kwargs`` share an engine, except for
        in-memory databases, of which each session gets its own, as upstream does it.

        Args:
            session_id: Which conversation.
            url: Such as ``"postgresql+asyncpg://user:password@host/database"``.
            engine_kwargs: Passed to ``create_async_engine``.
            session_settings: As for the constructor.
            **kwargs: As for the constructor.

        Raises:
            InvalidInput: An argument or an option cannot be used, or the URL cannot be read.
            MissingExtra: The driver is not installed.
            UnsupportedEngine: There is no dialect for the database or the driver.
        """
        check_options(f"{cls.__name__}.from_url()", kwargs, options_of(cls))
        engine = shared_engine(url, engine_kwargs)
        return cls(session_id, engine=engine, session_settings=session_settings, **kwargs)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for the app's own statements."""
        return self._log.database.engine

    @property
    def user_id(self) -> str | None:
        """The user that the session is bound to, if any."""
        return self._binding.user_id

    if TYPE_CHECKING:
        # Upstream's protocol wants an attribute, and will not take a property for one.
        session_settings: SessionSettings | None
    else:

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
        """Text and id of the session's last items, the latest first.

        Args:
            limit: At most so many.
            connection: Read in this transaction of the caller's.
        """
        view = self._view
        wanted = {"session_id": self.session_id, "limit": limit}
        rows = await view.group_read(view.reads.last_items, connection, **wanted)
        return [(text, item_id) for _, text, item_id in rows]
