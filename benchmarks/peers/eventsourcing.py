"""The library eventsourcing: a session as an aggregate in its own event store.

It is synchronous, so each call runs in a thread. The current state is the fold of the aggregate's
events; with the cache that is switched on here, of those that are new. No look-up by a value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event

from benchmarks.peers.base import PRAGMAS, SETTINGS, Peer, Values, describe, file_of

PAGE = 1000
CACHE = {"AGGREGATE_CACHE_MAXSIZE": "10000"}


class Session(Aggregate):
    """A session with its metadata, and with events of the app's own, which leave no trace in it."""

    class MetadataSet(Aggregate.Event):
        metadata: dict[str, Any]

    class Noted(Aggregate.Event):
        note: dict[str, Any]

    @event("Begun")
    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.metadata: dict[str, Any] = {}

    @staticmethod
    def create_id(session_id: str) -> UUID:
        return uuid5(NAMESPACE_URL, session_id)

    @event(MetadataSet)
    def set_metadata(self, metadata: dict[str, Any]) -> None:
        self.metadata.update(metadata)

    @event(Noted)
    def record(self, note: dict[str, Any]) -> None:
        pass


class _EventSourcing(Peer):
    name: ClassVar[str] = "eventsourcing"

    def __init__(self, settings: dict[str, str]) -> None:
        self._app: Any = Application[UUID](env={**settings, **CACHE})

    def _session(self, session_id: str) -> Any:
        try:
            return self._app.repository.get(Session.create_id(session_id))
        except AggregateNotFoundError:
            return Session(session_id)

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        def work() -> None:
            session = self._session(session_id)
            session.set_metadata(metadata=dict(metadata))
            self._app.save(session)

        await asyncio.to_thread(work)

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        found = (await asyncio.to_thread(self._session, session_id)).metadata
        return {key: found.get(key) for key in keys}

    async def history(self, session_id: str, key: str) -> list[Any]:
        events = await asyncio.to_thread(self._events, session_id)
        return [e.metadata[key] for e in events if isinstance(e, Session.MetadataSet)]

    async def metadata_as_of(
        self, session_id: str, keys: Sequence[str], changes: int
    ) -> dict[str, Any]:
        version = Session.INITIAL_VERSION + changes
        aggregate = Session.create_id(session_id)
        found = await asyncio.to_thread(self._app.repository.get, aggregate, version=version)
        return {key: found.metadata.get(key) for key in keys}

    async def append(self, session_id: str, data: Values) -> None:
        def work() -> None:
            session = self._session(session_id)
            session.record(note=dict(data))
            self._app.save(session)

        await asyncio.to_thread(work)

    async def read_stream(self, session_id: str) -> list[Values]:
        return _notes(await asyncio.to_thread(self._events, session_id))

    async def export(self) -> list[Values]:
        return _notes(await asyncio.to_thread(self._feed))

    def _events(self, session_id: str) -> list[Any]:
        return list(self._app.events.get(Session.create_id(session_id)))

    def _feed(self) -> list[Any]:
        found: list[Any] = []
        page: Any = None
        start = 1
        while page is None or len(page) == PAGE:
            page = self._app.recorder.select_notifications(start=start, limit=PAGE)
            found += map(self._app.mapper.to_domain_event, page)
            start = page[-1].id + 1 if page else start
        return found

    async def close(self) -> None:
        self._app.close()


def _notes(events: list[Any]) -> list[Values]:
    return [e.note for e in events if isinstance(e, Session.Noted)]


class OnSQLite(_EventSourcing):
    """``eventsourcing.sqlite``."""

    @classmethod
    async def open(cls, url: str) -> Self:
        return cls({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": file_of(url)})

    async def durability(self) -> str:
        with self._app.factory.datastore.transaction(commit=False) as cursor:
            values = []
            for name in PRAGMAS:
                cursor.execute(f"PRAGMA {name}")
                values.append(cursor.fetchone()[0])
        return describe(dict(zip(PRAGMAS, values, strict=True)))


class OnPostgreSQL(_EventSourcing):
    """``eventsourcing.postgres``."""

    @classmethod
    async def open(cls, url: str) -> Self:
        address = urlsplit(url)
        query = dict(parse_qsl(address.query))
        return cls(
            {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": address.path.removeprefix("/"),
                "POSTGRES_HOST": address.hostname or query.get("host", "localhost"),
                "POSTGRES_PORT": str(address.port or query.get("port", 5432)),
                "POSTGRES_USER": unquote(address.username or ""),
                "POSTGRES_PASSWORD": unquote(address.password or ""),
            }
        )

    async def durability(self) -> str:
        values = []
        with self._app.factory.datastore.transaction() as cursor:
            for name in SETTINGS:
                cursor.execute(f"SHOW {name}")
                values.append(cursor.fetchone()[name])
        return describe(dict(zip(SETTINGS, values, strict=True)))
