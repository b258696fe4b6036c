"""The owner of a session: creating, finding and transferring the sessions of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Unpack, cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from eventmeta.core.canonical_json import encode_changes
from eventmeta.core.deadline import DEFAULT_RETRY_FOR, DEFAULT_TIMEOUT
from eventmeta.core.events import RecordedEvent
from eventmeta.core.principal import Principal
from eventmeta.core.validation import (
    check_flag,
    check_limits,
    check_user_id,
    derived_event_id,
    new_event_id,
)
from eventmeta.log.commands import CreateSession, SetMetadata, TransferSession
from eventmeta.log.commands.options import WriteOptions, check_options, command_fields, options_of
from eventmeta.log.event_log import EventLog
from eventmeta.queries.scope import Scope
from eventmeta.queries.sessions import latest_sessions, session_exists
from eventmeta.session.arguments import CreationOptions, HandleOptions, SessionOptions
from eventmeta.session.handle import SessionHandle
from eventmeta.tables.names import TableNames, TableOptions


class SessionOwnership(SessionHandle):
    """A session with its owner."""

    @classmethod
    async def create_session(
        cls,
        user_id: str,
        *,
        engine: AsyncEngine,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        actor: str | None = None,
        event_id: str | UUID | None = None,
        connection: AsyncConnection | AsyncSession | None = None,
        **options: Unpack[HandleOptions],
    ) -> Self:
        """Create a session that belongs to ``user_id``; create the user too if needed.

        Args:
            user_id: The owner.
            engine: As for the constructor.
            session_id: The id of the session. If None, the id is derived from ``event_id``, or is a
                new UUIDv7 if that is None too.
            metadata: JSON values by key. They are merged into the session's metadata in the same
                transaction.
            actor: Who creates the session; the ambient actor (`acting_as`) if None.
            event_id: A UUID under which the session is created at most once, with its metadata.
            connection: Create the session inside this transaction of the caller's.
            **options: As for the constructor.

        Returns:
            The session. Its rows are written already.

        Raises:
            InvalidInput: An argument cannot be used; nothing was changed.
            SessionNotFound: ``session_id`` belongs to another user; nothing was changed.
            EventIdReused: The event id was used for another change; nothing was changed.
        """
        call = f"{cls.__name__}.create_session()"
        check_options(call, options, options_of(cls) | CreationOptions.__annotations__.keys())
        written: WriteOptions = {"actor": actor, "event_id": event_id, "connection": connection}
        fields = command_fields(call, written, Principal(user_id, claims=True))
        made = session_id
        if made is None:
            made = new_event_id() if event_id is None else derived_event_id(event_id, "session")
        session = cls(made, engine=engine, **_of_user(user_id, options))
        changes = encode_changes({} if metadata is None else metadata, session._max_value_bytes)
        command = CreateSession(stream=session._stream, **fields)
        if changes:
            fields["event_id"] = derived_event_id(command.event_id, "metadata")
            fact = SetMetadata.fact_of(changes)
            command.companions = [SetMetadata(stream=session._stream, fact=fact, **fields)]
        await session._submit(command, written)
        return session

    @classmethod
    async def get_session(
        cls,
        user_id: str,
        session_id: str,
        *,
        engine: AsyncEngine,
        **options: Unpack[HandleOptions],
    ) -> Self | None:
        """Return the session if ``user_id`` owns it, else None.

        None does not tell if the session is missing or belongs to another user.

        Args:
            user_id: The owner.
            session_id: The id of the session.
            engine: As for the constructor.
            **options: As for the constructor.
        """
        check_options(f"{cls.__name__}.get_session()", options, options_of(cls))
        session = cls(session_id, engine=engine, **_of_user(user_id, options))
        create_tables = options.get("create_tables", False)
        own = session._view.own
        exists = await session_exists(own, session.session_id, create_tables=create_tables)
        return session if exists else None

    @classmethod
    async def get_sessions(
        cls,
        user_id: str,
        limit: int | None = None,
        offset: int = 0,
        *,
        engine: AsyncEngine,
        **options: Unpack[HandleOptions],
    ) -> list[Self]:
        """Return the sessions of ``user_id``, in the order of `get_sessions_for_user`.

        Args:
            user_id: The owner.
            limit: The maximum number of sessions; None for all.
            offset: How many sessions to skip at the beginning.
            engine: As for the constructor.
            **options: As for the constructor.
        """
        check_options(f"{cls.__name__}.get_sessions()", options, options_of(cls))
        arguments = _of_user(user_id, options)
        names: Any = {
            name: value for name, value in options.items() if name in TableOptions.__annotations__
        }
        limits = check_limits(
            options.get("timeout", DEFAULT_TIMEOUT), options.get("retry_for", DEFAULT_RETRY_FOR)
        )
        view = Scope(EventLog.of(engine, TableNames.of(names)).database, Principal(user_id), limits)
        create_tables = options.get("create_tables", False)
        found = await latest_sessions(view, limit, offset, create_tables=create_tables)
        return [cls(session_id, engine=engine, **arguments) for session_id in found]

    async def get_sessions_for_user(
        self, user_id: str, limit: int | None = None, offset: int = 0
    ) -> list[str]:
        """Return the ids of a user's sessions, the latest change first, then the greatest id.

        If this session is bound to another user than ``user_id``, the list is empty.

        Args:
            user_id: The owner.
            limit: The maximum number of ids; None for all.
            offset: How many ids to skip at the beginning.

        Raises:
            InvalidInput: An argument cannot be used.
        """
        check_user_id(user_id)
        mine = self._view.access.user_id or user_id
        view = self._view._replace(access=Principal(mine))
        found = await latest_sessions(view, limit, offset, create_tables=self._create_tables)
        return found if mine == user_id else []

    async def transfer(
        self, to_user: str, *, with_history: bool = False, **options: Unpack[WriteOptions]
    ) -> RecordedEvent | None:
        """Hand the session over to ``to_user``, who is created if needed.

        The new owner gets the items and the metadata as they are now. The history before the
        transfer stays hidden from the new owner: deleted values, what runs have used, and any
        ``as_of`` before the transfer. A handle that is bound to the previous owner does not see
        the session any more.

        Args:
            to_user: The new owner.
            with_history: Hand over the history as well. Only the history that this handle sees is
                handed over: all of it if the handle is bound to no user.
            **options: See `WriteOptions`.

        Returns:
            The ``user_assigned`` event; None if the session belongs to this user already.

        Raises:
            InvalidInput: An argument cannot be used; nothing was changed.
            SessionNotFound: The session does not exist, or the user of this handle does not own it.
        """
        check_flag("with_history", with_history)
        command = TransferSession(
            stream=self._stream,
            to_user=check_user_id(to_user),
            with_history=with_history,
            **self._fields("transfer()", options),
        )
        return await self._submit(command, options)


def _of_user(user_id: str, options: HandleOptions) -> SessionOptions:
    """Return ``options`` for a session that ``user_id`` owns: it need not be claimed."""
    return cast("SessionOptions", {"claim": False, **options, "user_id": check_user_id(user_id)})
