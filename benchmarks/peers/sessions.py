"""Peers with a session object for each session, made once, as the SDK's sessions are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from benchmarks.peers.base import Item, Peer, as_items

if TYPE_CHECKING:
    from agents.memory import Session

S = TypeVar("S")
ItemSession = TypeVar("ItemSession", bound="Session")


class SessionPeer(Peer, Generic[S]):
    """One that makes a session object by its id."""

    def __init__(self, make: Callable[[str], S]) -> None:
        self._make = make
        self._sessions: dict[str, S] = {}

    def _session(self, session_id: str) -> S:
        if session_id not in self._sessions:
            self._sessions[session_id] = self._make(session_id)
        return self._sessions[session_id]


class ItemPeer(SessionPeer[ItemSession]):
    """One whose sessions keep items by the SDK's protocol."""

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        await self._session(session_id).add_items(cast(Any, items))

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        return as_items(await self._session(session_id).get_items(limit))

    async def pop_item(self, session_id: str) -> Item | None:
        return cast("Item | None", await self._session(session_id).pop_item())
