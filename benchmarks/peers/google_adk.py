"""Google ADK's DatabaseSessionService: the metadata as the state of a session.

Each change is an event with a state delta. There is no look-up by a value of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from google.adk.events import Event, EventActions
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig

from benchmarks.peers.base import Peer, Values, durability_of

APP = "benchmarks"


class GoogleADK(Peer):
    """One service, and for each session the object that it gave, as the service demands it."""

    name: ClassVar[str] = "google-adk"

    def __init__(self, service: DatabaseSessionService) -> None:
        self._service = service
        self._sessions: dict[str, Any] = {}

    @classmethod
    async def open(cls, url: str) -> Self:
        service = DatabaseSessionService(url)
        await service.prepare_tables()
        return cls(service)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        if session_id not in self._sessions:
            self._sessions[session_id] = await self._service.create_session(
                app_name=APP, user_id=_user(session_id), session_id=session_id
            )
        event = Event(author="user", actions=EventActions(state_delta=dict(metadata)))
        await self._service.append_event(self._sessions[session_id], event)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        found = await self._read(session_id, GetSessionConfig(num_recent_events=0))
        return {key: found.state.get(key) if found else None for key in keys}

    async def history(self, session_id: str, key: str) -> list[Any]:
        found = await self._read(session_id, None)
        return [event.actions.state_delta[key] for event in found.events]

    async def list_sessions(self, limit: int) -> list[str]:
        """The service lists all there are, in ascending order."""
        found = await self._service.list_sessions(app_name=APP)
        return [session.id for session in reversed(found.sessions[-limit:])]

    async def _read(self, session_id: str, config: GetSessionConfig | None) -> Any:
        return await self._service.get_session(
            app_name=APP, user_id=_user(session_id), session_id=session_id, config=config
        )

    async def durability(self) -> str:
        return await durability_of(self._service.db_engine)

    async def close(self) -> None:
        await self._service.close()


def _user(session_id: str) -> str:
    return f"user-{session_id}"
