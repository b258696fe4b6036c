"""Commands on behalf of users, as the handles submit them."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from eventmeta import MetadataStore, RecordedEvent, new_event_id
from eventmeta.core.canonical_json import encode_changes
from eventmeta.core.events import StreamKey
from eventmeta.core.principal import Principal
from eventmeta.log.commands import (
    AddItems,
    Append,
    ClearSession,
    Command,
    CreateSession,
    DeleteMetadata,
    DeleteUser,
    DeleteUserMetadata,
    EventData,
    PopItem,
    ReplaceItems,
    SetMetadata,
    SetUserMetadata,
    TransferSession,
)


@dataclass(frozen=True)
class Actor:
    """Someone who asks for things; each method makes the command."""

    user_id: str | None = None
    claims: bool = True

    def _of(self, kind: type[Command], stream: StreamKey, **fields: Any) -> Any:
        fields.setdefault("event_id", new_event_id())
        access = Principal(self.user_id, self.claims and self.user_id is not None)
        return kind(stream=stream, actor=self.user_id, access=access, **fields)

    def session(self, kind: type[Command], session_id: str, **fields: Any) -> Any:
        return self._of(kind, StreamKey(session_id), **fields)

    def add(self, session_id: str, *items: str, **fields: Any) -> Any:
        return self.session(AddItems, session_id, items=items or ("{}",), **fields)

    def set(self, session_id: str, metadata: Any, **fields: Any) -> Any:
        fact = SetMetadata.fact_of(encode_changes(metadata, 10_000))
        return self.session(SetMetadata, session_id, fact=fact, **fields)

    def note(self, session_id: str, **fields: Any) -> Any:
        return self.session(Append, session_id, fact=EventData("noted", {}), **fields)

    def pop(self, session_id: str, **fields: Any) -> Any:
        return self.session(PopItem, session_id, **fields)

    def clear(self, session_id: str, **fields: Any) -> Any:
        return self.session(ClearSession, session_id, keep_metadata=False, **fields)

    def delete(self, session_id: str, **fields: Any) -> Any:
        return self.session(DeleteMetadata, session_id, keys=None, **fields)

    def replace(self, session_id: str, *items: str, expected: Any = None, **fields: Any) -> Any:
        return self.session(ReplaceItems, session_id, expected=expected, items=items, **fields)

    def create(self, session_id: str, **fields: Any) -> Any:
        return self.session(CreateSession, session_id, **fields)

    def transfer(self, session_id: str, to_user: str, **fields: Any) -> Any:
        return self.session(TransferSession, session_id, to_user=to_user, **fields)

    def set_user(self, user_id: str, metadata: Any, limit: int = 10_000, **fields: Any) -> Any:
        return self._of(
            SetUserMetadata,
            StreamKey(user_id, "user"),
            changes=encode_changes(metadata, 10_000),
            max_value_bytes=limit,
            **fields,
        )

    def delete_user_metadata(self, user_id: str, keys: Any = None, **fields: Any) -> Any:
        return self._of(DeleteUserMetadata, StreamKey(user_id, "user"), keys=keys, **fields)

    def delete_user(self, user_id: str, **fields: Any) -> Any:
        return self._of(DeleteUser, StreamKey(user_id, "user"), **fields)


ADMIN = Actor()
ALICE = Actor("alice")
BOB = Actor("bob")


def submit(store: MetadataStore, command: Command, **options: Any) -> Awaitable[Any]:
    return store.log.submit(command, **options)


async def together(store: MetadataStore, *commands: Command) -> list[Any]:
    """What becomes of the commands in one batch."""
    await store.log.database.opening.connect(create=False)
    return await store.log.appender.commit(commands)


async def events(
    store: MetadataStore, stream_id: str, kind: str = "session"
) -> list[RecordedEvent]:
    """The events of a stream, whose versions have no holes."""
    found = [
        event
        async for event in store.events()
        if (event.stream_type, event.stream_id) == (kind, stream_id)
    ]
    assert [event.version for event in found] == list(range(1, len(found) + 1))
    return found


async def types(store: MetadataStore, stream_id: str, kind: str = "session") -> list[str]:
    return [event.type for event in await events(store, stream_id, kind)]


async def owner(store: MetadataStore, session_id: str) -> str | None:
    """Whose the session is, by its head; the row, if there is one, must say the same."""
    rows = await select(
        store,
        "SELECT user_id FROM agent_streams WHERE stream_type = 'session' AND stream_id = :id",
        id=session_id,
    )
    (found,) = rows[0] if rows else (None,)
    for (named,) in await select(
        store, "SELECT user_id FROM agent_sessions WHERE session_id = :id", id=session_id
    ):
        assert named == (found or None)
    return None if found is None else str(found)


async def user_ids(store: MetadataStore) -> list[str]:
    return [row[0] for row in await select(store, "SELECT user_id FROM agent_users ORDER BY 1")]


async def select(store: MetadataStore, statement: str, **values: Any) -> list[Any]:
    async with store.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(statement), values)]
