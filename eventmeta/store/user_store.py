"""`UserStore`: a store as one user sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from eventmeta.core.deadline import Limits
from eventmeta.core.errors import UserMismatch, UserNotFound
from eventmeta.core.principal import Principal
from eventmeta.log.event_log import EventLog
from eventmeta.queries.sessions import SessionEntry, list_sessions
from eventmeta.session.arguments import CreationOptions, HandleOptions, SessionOptions
from eventmeta.session.metadata_session import MetadataSession
from eventmeta.store.queries import StoreQueries
from eventmeta.store.user import User


class UserStore(StoreQueries):
    """The store as one user sees it: the user's sessions and metadata, and nothing of other users.

    `MetadataStore.as_user` returns one. A session of another user behaves as if it did not exist.
    """

    def __init__(self, log: EventLog, user_id: str, max_value_bytes: int, limits: Limits) -> None:
        super().__init__(log, Principal(user_id), max_value_bytes, limits)
        self._user_id = user_id

    @property
    def user_id(self) -> str:
        """Return the id of the user."""
        return self._user_id

    def session(self, session_id: str, **options: Unpack[SessionOptions]) -> MetadataSession:
        """Return the session ``session_id``.

        If the user does not own it, the session behaves as if it did not exist.

        Args:
            session_id: The id of the session.
            **options: As for `MetadataSession`, but ``claim`` is False by default.
        """
        return MetadataSession(session_id, **self._arguments(options), user_id=self._user_id)

    async def create_session(self, **options: Unpack[CreationOptions]) -> MetadataSession:
        """Create a session of the user: see `MetadataSession.create_session`."""
        return await MetadataSession.create_session(self._user_id, **self._arguments(options))

    async def get_session(
        self, session_id: str, **options: Unpack[HandleOptions]
    ) -> MetadataSession | None:
        """Return the session if the user owns it, else None: see `MetadataSession.get_session`."""
        arguments = self._arguments(options)
        return await MetadataSession.get_session(self._user_id, session_id, **arguments)

    async def list_sessions(
        self, *, limit: int | None = 100, after: SessionEntry | None = None
    ) -> list[SessionEntry]:
        """List the user's sessions: see `MetadataStore.list_sessions`."""
        self._check_open()
        return await list_sessions(self._view, limit, after)

    def user(self, user_id: str | None = None) -> User:
        """Return the user.

        Raises:
            UserNotFound: ``user_id`` names another user, who may exist or not.
        """
        self._check_open()
        if user_id not in (None, self._user_id):
            raise UserNotFound(str(user_id))
        return User(self._user_id, self._log, self._view, self._max_value_bytes)

    def _arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(options)
        if given.pop("user_id", self._user_id) != self._user_id:
            raise UserMismatch(
                "this is the store of another user: leave user_id out, or call as_user() of a "
                "MetadataStore to get the store of that user"
            )
        return self._opening({"claim": False, **given})
