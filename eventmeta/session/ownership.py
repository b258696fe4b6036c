"""Whose a session is: making it for a user, finding those of a user, handing it over."""

from __future__ import annotations

from typing import Any, Self, Unpack

from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.access import Access
from eventmeta.commands import CreateSession, TransferSession
from eventmeta.database import Database
from eventmeta.events import RecordedEvent
from eventmeta.identifiers import check_bool, check_user_id, new_event_id
from eventmeta.options import WriteOptions, command_fields
from eventmeta.search import latest_sessions, session_exists
from eventmeta.session.opened import OpenedSession
from eventmeta.table_names import TableNames, TableOptions
from eventmeta.view import View


class SessionOwnership(OpenedSession):
    """The owner of a session."""

    @classmethod
    async def create_session(
        cls, user_id: str, *, engine: AsyncEngine, create_tables: bool = False, **kwargs: Any
    ) -> Self:
        """Make a new session that belongs to ``user_id``, who is created if need be.

        Args:
            user_id: The owner.
            engine: As for the constructor.
            create_tables: As for the constructor.
            **kwargs: Passed to the constructor.

        Returns:
            The session, whose rows are written. Its id is a new UUIDv7.

        Raises:
            InvalidIdentifier: The user id cannot be used.
        """
        arguments = _of_user(user_id, kwargs)
        session = cls(new_event_id(), engine=engine, create_tables=create_tables, **arguments)
        fields = command_fields({}, Access(user_id, claims=True))
        await session._submit(CreateSession(stream=session._stream, **fields), {})
        return session

    @classmethod
    async def get_session(
        cls,
        user_id: str,
        session_id: str,
        *,
        engine: AsyncEngine,
        create_tables: bool = False,
        **kwargs: Any,
    ) -> Self | None:
        """The session, if it exists and belongs to ``user_id``; else None, whichever it is.

        Args:
            user_id: The owner.
            session_id: Which session.
            engine: As for the constructor.
            create_tables: As for the constructor.
            **kwargs: Passed to the constructor.
        """
        arguments = _of_user(user_id, kwargs)
        session = cls(session_id, engine=engine, create_tables=create_tables, **arguments)
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
        create_tables: bool = False,
        **kwargs: Any,
    ) -> list[Self]:
        """The sessions of ``user_id``, in the order of `get_sessions_for_user`.

        Args:
            user_id: The owner.
            limit: At most so many; None for all.
            offset: Without so many of the first.
            engine: As for the constructor.
            create_tables: As for the constructor.
            **kwargs: Passed to the constructor.
        """
        arguments = _of_user(user_id, kwargs)
        names = {name: kwargs[name] for name in TableOptions.__annotations__ if name in kwargs}
        view = View(Database.of(engine, TableNames(**names)), Access(user_id))
        found = await latest_sessions(view, limit, offset, create_tables=create_tables)
        return [
            cls(session_id, engine=engine, create_tables=create_tables, **arguments)
            for session_id in found
        ]

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
        view = View(self._database, Access(mine))
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
        command = TransferSession(
            stream=self._stream,
            to_user=check_user_id(to_user),
            with_history=check_bool("with_history", with_history),
            **self._fields(options),
        )
        return await self._submit(command, options)


def _of_user(user_id: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` for the session of a user; it is no longer there to be claimed."""
    return {"claim": False, **arguments, "user_id": check_user_id(user_id)}
