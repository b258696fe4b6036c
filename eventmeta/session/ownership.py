"""Whose a session is: making it for a user, finding those of a user, handing it over."""

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
    """The owner of a session."""

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
        """Make a session that belongs to ``user_id``, who is created if need be.

        Args:
            user_id: The owner.
            engine: As for the constructor.
            session_id: The id of the session; if None a new UUIDv7, or one that follows from the
                ``event_id``.
            metadata: JSON values by key, which are merged into the session's in the same
                transaction.
            actor: Who makes it; the ambient actor (`acting_as`) if None.
            event_id: A UUID under which it is made at most once, with its metadata.
            connection: Make it inside this transaction of the caller's.
            **options: As for the constructor.

        Returns:
            The session, whose rows are written.

        Raises:
            InvalidInput: An argument cannot be used; nothing was changed.
            SessionNotFound: ``session_id`` is another user's; nothing was changed.
            EventIdReused: The event id stands for another change; nothing was changed.
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
        """The session, if it exists and belongs to ``user_id``; else None, whichever it is.

        Args:
            user_id: The owner.
            session_id: Which session.
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
        """The sessions of ``user_id``, in the order of `get_sessions_for_user`.

        Args:
            user_id: The owner.
            limit: At most so many; None for all.
            offset: Without so many of the first.
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
        """Ids of the sessions of ``user_id``, the latest change first, then the greatest id.

        A session that is bound to one user finds none of another.

        Args:
            user_id: The owner.
            limit: At most so many; None for all.
            offset: Without so many of the first.

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
        """Hand the session over to ``to_user``, who is created if need be.

        The new owner gets its items and its metadata as they are. What the log has of it before
        this, such as values that were deleted and what runs have used, is out of the new owner's
        reach, and so is any ``as_of`` before this. A handle that is bound to the user who had it
        reaches it no more.

        Args:
            to_user: Whose it is to be.
            with_history: Hand over the past as well, as far as it is within reach here: all of it
                if this handle is bound to no user.
            **options: See `WriteOptions`.

        Returns:
            The ``user_assigned`` event; None if the session is this user's already.

        Raises:
            InvalidInput: An argument cannot be used; nothing was changed.
            SessionNotFound: There is no such session, or it is not one's own to hand over.
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
    """``options`` for the session of a user; it is no longer there to be claimed."""
    return cast("SessionOptions", {"claim": False, **options, "user_id": check_user_id(user_id)})
