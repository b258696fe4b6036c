"""`MetadataStore`: all sessions of one engine."""

from __future__ import annotations

from typing import Any, Self, Unpack

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.core.canonical_json import DEFAULT_MAX_VALUE_BYTES
from eventmeta.core.deadline import DEFAULT_RETRY_FOR, DEFAULT_TIMEOUT, Limits
from eventmeta.core.events import RecordedEvent, StreamKey
from eventmeta.core.principal import ADMINISTRATOR, Principal
from eventmeta.core.settle import run_to_completion
from eventmeta.core.validation import check_flag, check_limits, check_positive, check_user_id
from eventmeta.dialects.factory import make_engine
from eventmeta.log.commands import DeleteUser
from eventmeta.log.commands.options import (
    WriteOptions,
    check_options,
    check_table_options,
    command_fields,
    options_of,
)
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope
from eventmeta.queries.sessions import SessionEntry, latest_sessions, list_sessions
from eventmeta.session.arguments import CreationOptions, HandleOptions, SessionOptions
from eventmeta.session.metadata_session import MetadataSession
from eventmeta.store.log import StoreLog
from eventmeta.store.projections import StoreProjections
from eventmeta.store.queries import StoreQueries
from eventmeta.store.user import User
from eventmeta.store.user_store import UserStore
from eventmeta.tables.names import TableNames, TableOptions


class StoreOptions(TableOptions, total=False):
    """Keyword arguments with which a store is opened: see `MetadataStore`."""

    create_tables: bool
    max_value_bytes: int
    timeout: float
    retry_for: float
    hints: bool


class MetadataStore(StoreQueries, StoreLog, StoreProjections):
    """The store of one engine: its sessions, its users, its log, its read models.

    This is the administrator's store, in which everything is visible; `as_user` returns the store
    of one user. Stores and sessions of one engine with the same table names share one writer.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        create_tables: bool = False,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        retry_for: float = DEFAULT_RETRY_FOR,
        hints: bool = False,
        **table_names: Unpack[TableOptions],
    ) -> None:
        """Open the store; no I/O is done before the first call.

        Args:
            engine: See `MetadataSession`.
            create_tables: Create missing tables at the first call, of this store or of another
                store or session of the engine with the same tables.
            max_value_bytes: The maximum size of a metadata value, and of the data of one of the
                app's own events, in bytes of JSON.
            timeout: How many seconds a call waits for the log, including connecting and retries.
                Then the connection is closed; a write ends with `OutcomeUnknown`, any other call
                with `DatabaseUnavailable`. A transaction of a projector or a subscription may take
                as long. A statement that reads the whole log or builds tables may take 20 times as
                long. For projectors, subscriptions and such statements, the store that was opened
                last with this option on the engine decides.
            retry_for: For how many seconds to try again if the server refuses connections or has
                none left.
            hints: On PostgreSQL, notify projectors and subscriptions of other processes after each
                commit, and listen for such notifications on one more connection. Without hints
                they find new events by polling.
            **table_names: See `TableOptions`.

        Raises:
            InvalidIdentifier: A table name cannot be used.
            InvalidInput: ``timeout`` or ``retry_for`` is not a number of seconds.
            UnknownOption: An option does not exist.
            UnsupportedEngine: No dialect supports the engine.
        """
        check_table_options(type(self), table_names)
        check_flag("create_tables", create_tables)
        check_flag("hints", hints)
        check_positive("max_value_bytes", max_value_bytes)
        limits = check_limits(timeout, retry_for)
        log = EventLog.of(engine, TableNames.of(table_names))
        log.database.opening.creates_tables = log.database.opening.creates_tables or create_tables
        super().__init__(log, ADMINISTRATOR, max_value_bytes, limits)
        if limits != Limits():
            log.database.limits = limits
        log.gives_hints = log.gives_hints or hints
        self._owns_engine = False

    @classmethod
    def from_url(
        cls,
        url: str | URL,
        *,
        engine_kwargs: dict[str, Any] | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Open the store in the database at ``url``, with an engine of its own.

        Args:
            url: A URL such as ``"sqlite+aiosqlite:///sessions.db"``.
            engine_kwargs: Keyword arguments for ``create_async_engine``.
            **options: As for the constructor.

        Raises:
            InvalidInput: An option cannot be used, or the URL cannot be read.
            MissingExtra: The driver is not installed.
            UnsupportedEngine: No dialect supports the database or the driver.
        """
        check_options(f"{cls.__name__}.from_url()", options, options_of(cls))
        store = cls(make_engine(url, engine_kwargs), **options)
        store._owns_engine = True
        return store

    @property
    def engine(self) -> AsyncEngine:
        """Return the engine, for the app's own statements."""
        return self._log.database.engine

    @property
    def log(self) -> EventLog:
        """Return the log that this store shares with its sessions.

        It is for the library's own use, not for apps.
        """
        return self._log

    async def create_tables(self, *, turn_on_structured_metadata: bool = False) -> None:
        """Create the tables, columns, indexes, triggers and the view that are missing.

        So this also migrates a database that upstream's SQLAlchemySession or an older eventmeta
        made. Columns that are too narrow for what the store writes are widened. No row is touched.
        It is safe to repeat the call, and to make it while writers and other processes run.

        Args:
            turn_on_structured_metadata: Keep the tables of conversations, tool calls and tokens
                from now on, in a database whose store did not keep them. This store must have
                ``structured_metadata=True``. Stop all processes that write before: a running
                process would continue without these tables.

        Raises:
            SettingsConflict: The options of the store contradict the settings in the database.
            UnsupportedSchema: An existing table cannot hold exactly what the store writes.
        """
        self._check_open()
        await self._log.create_tables(turn_on=turn_on_structured_metadata)

    async def schema_sql(self, *, turn_on_structured_metadata: bool = False) -> str:
        """Return the SQL that `create_tables` would execute now, as a script; change nothing.

        The script is for changing the schema by hand. Each statement ends with ``;``, and a blank
        line separates two statements. The script is empty if nothing is missing. See
        docs/migration.md.

        Args:
            turn_on_structured_metadata: As for `create_tables`.

        Raises:
            SettingsConflict: As for `create_tables`.
            UnsupportedSchema: As for `create_tables`.
        """
        self._check_open()
        return await self._log.database.opening.schema_sql(turn_on=turn_on_structured_metadata)

    # --- Sessions -------------------------------------------------------------------------------

    def session(self, session_id: str, **options: Unpack[SessionOptions]) -> MetadataSession:
        """Return the session ``session_id``, opened with ``options``: see `MetadataSession`."""
        return MetadataSession(session_id, **self._opening(options))

    async def create_session(
        self, user_id: str, **options: Unpack[CreationOptions]
    ) -> MetadataSession:
        """Create a session of ``user_id``: see `MetadataSession.create_session`."""
        return await MetadataSession.create_session(user_id, **self._opening(options))

    async def get_session(
        self, user_id: str, session_id: str, **options: Unpack[HandleOptions]
    ) -> MetadataSession | None:
        """Return the session if the user owns it, else None: see `MetadataSession.get_session`."""
        return await MetadataSession.get_session(user_id, session_id, **self._opening(options))

    async def get_sessions(
        self,
        user_id: str,
        limit: int | None = None,
        offset: int = 0,
        **options: Unpack[HandleOptions],
    ) -> list[MetadataSession]:
        """Return the sessions of ``user_id``: see `MetadataSession.get_sessions`."""
        return await MetadataSession.get_sessions(user_id, limit, offset, **self._opening(options))

    async def get_sessions_for_user(
        self, user_id: str, limit: int | None = None, offset: int = 0
    ) -> list[str]:
        """Return the ids of a user's sessions: see `MetadataSession.get_sessions_for_user`."""
        self._check_open()
        return await latest_sessions(self._of(user_id), limit, offset)

    async def list_sessions(
        self,
        user_id: str | None = None,
        *,
        limit: int | None = 100,
        after: SessionEntry | None = None,
    ) -> list[SessionEntry]:
        """List all sessions, or one user's, the latest change first, then the greatest id.

        Args:
            user_id: Only sessions of this user.
            limit: The maximum number of sessions; None for all.
            after: The last entry of the previous page. A session that has not changed since is
                neither skipped nor returned twice, however many others were added or changed.
        """
        self._check_open()
        return await list_sessions(
            self._view if user_id is None else self._of(user_id), limit, after
        )

    def _of(self, user_id: str) -> Scope:
        return self._view._replace(access=Principal(check_user_id(user_id)))

    # --- Users ----------------------------------------------------------------------------------

    def as_user(self, user_id: str) -> UserStore:
        """Return the store as ``user_id`` sees it: nothing of other users is visible in it."""
        self._check_open()
        user = check_user_id(user_id)
        return UserStore(self._log, user, self._max_value_bytes, self._limits)

    def user(self, user_id: str) -> User:
        """Return the user ``user_id``, who need not exist yet."""
        self._check_open()
        return User(user_id, self._log, self._view, self._max_value_bytes)

    async def delete_user(
        self, user_id: str, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Delete a user with all metadata. The user's sessions stay, without an owner.

        Nobody can claim these sessions; the administrator can `transfer` them.

        Args:
            user_id: The id of the user.
            **options: See `WriteOptions`; ``expected_version`` is the version of the user.

        Returns:
            The ``user_deleted`` event, whose ``data["sessions"]`` are the ids of the sessions that
            lost their owner; None if the user does not exist.

        Raises:
            InvalidInput: The id or an option cannot be used; nothing was changed.
            VersionConflict: The user is not at ``expected_version``; nothing was changed.
        """
        command = DeleteUser(
            stream=StreamKey(check_user_id(user_id), "user"),
            **command_fields("delete_user()", options, self._view.access),
        )
        self._check_open()
        return await self._submit(command, options.get("connection"))

    async def close(self) -> None:
        """Wait until all submitted writes are done; this handle accepts no more.

        An engine that was passed in stays open, with the other stores and sessions on it. An engine
        that `from_url` made is disposed, and its sessions are closed too. Work that is done in
        steps, such as a rebuild or a projector, ends at its next step.
        """
        self._closed = True
        if self._owns_engine:
            await run_to_completion(self._dispose())
        else:
            await self._log.drain()

    async def _dispose(self) -> None:
        await self._log.close()
        await self._log.database.dialect.dispose()
