"""The past of a session or a user: the state at a point, the events, what changed between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from eventmeta.core.as_of import AsOf
from eventmeta.core.canonical_json import check_key, indexed_value, parse
from eventmeta.core.errors import InvalidInput
from eventmeta.core.events import Position, RecordedEvent, StreamKey, read_event
from eventmeta.core.validation import check_count
from eventmeta.database.corruption import naming_corruption
from eventmeta.database.event_reading import LogReading
from eventmeta.dialects.statement import Row
from eventmeta.queries.history_statements import KEYED_EVENTS, StreamStatements
from eventmeta.queries.scope import Scope
from eventmeta.queries.statements import NO_LIMIT


class Missing:
    """The type of ``MISSING``."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"  # there is only one


MISSING: Final = Missing()
"""Stands for a key that is not there, where None would mean a stored JSON null."""


@dataclass(frozen=True, slots=True)
class ValueChange:
    """What happened to one key; ``MISSING`` where it was, or is, not there."""

    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event of a session or user, with the old and new value of each key that it changed."""

    event: RecordedEvent
    changes: Mapping[str, ValueChange]

    @property
    def version(self) -> int:
        """The version that the stream had after it."""
        return self.event.version

    @property
    def type(self) -> str:
        """What happened."""
        return self.event.type

    @property
    def actor(self) -> str | None:
        """Who did it, if known."""
        return self.event.actor

    @property
    def recorded_at(self) -> datetime:
        """When, in UTC."""
        return self.event.recorded_at


async def metadata_as_of(
    view: Scope, stream: StreamKey, bound: AsOf, keys: Sequence[str] | None = None
) -> dict[str, Any]:
    """The metadata as it was at ``bound``: the fold of the events up to it."""
    statement = _statements(view, stream).metadata_as_of[bound.column]
    async with naming_corruption(LogReading(view.database), stream):
        rows = await view.fetch(statement, stream_id=stream.stream_id, bound=bound.value)
    if stream.stream_type == "user":
        found = document_of(rows)
    else:
        found = {key: parse(text) for key, text in sorted(map(tuple, rows))}
    wanted = found.keys() if keys is None else frozenset(keys)
    return {key: value for key, value in found.items() if key in wanted}


def document_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The metadata of a user, whose row holds it all; nothing if there is no such user."""
    document: dict[str, Any] = parse(rows[0][0] if rows and rows[0][0] else "{}")
    return {key: document[key] for key in sorted(document)}


def _statements(view: Scope, stream: StreamKey) -> StreamStatements:
    return view.reads.users if stream.stream_type == "user" else view.reads.sessions


class Page(NamedTuple):
    """Which entries of a history to read."""

    key: str | None
    limit: int
    after: int

    @classmethod
    def of(cls, key: object, limit: object, after: object) -> Page:
        """The page that a caller asks for.

        Raises:
            InvalidInput: There is no such page.
        """
        if isinstance(after, Position):
            raise InvalidInput(f"after={after!r} is a Position; give a version of the session")
        return cls(
            None if key is None else check_key(key),
            NO_LIMIT if limit is None else check_count("limit", limit),
            0 if after is None else check_count("after", after),
        )


async def history(view: Scope, stream: StreamKey, page: Page) -> list[HistoryEntry]:
    """The events of a stream in order, each with what it changed."""
    events = await _events(view, stream, page)
    state = await _state_before(view, stream, events[0]) if events else {}
    entries: list[HistoryEntry] = []
    for event in events:
        changes: dict[str, ValueChange] = {}
        recorded = event.data["changes"] if event.type in KEYED_EVENTS else ()
        for name, text in (change[:2] for change in recorded):
            new = MISSING if text is None else parse(text)
            if page.key is None or name == page.key:
                changes[name] = ValueChange(state.get(name, MISSING), new)
            state[name] = new
        entries.append(HistoryEntry(event, changes))
    return entries


async def _state_before(view: Scope, stream: StreamKey, event: RecordedEvent) -> dict[str, Any]:
    """Return the metadata as ``event`` found it.

    If the event changes none, that is how it left it: it may be the first that is seen at all.
    """
    if event.version == 1:
        return {}
    return await metadata_as_of(
        view, stream, AsOf("version", event.version - (event.type in KEYED_EVENTS))
    )


async def _events(view: Scope, stream: StreamKey, page: Page) -> list[RecordedEvent]:
    statements = _statements(view, stream)
    statement = statements.events if page.key is None else statements.events_of_key
    async with naming_corruption(LogReading(view.database), stream):
        rows = await view.fetch(statement, stream_id=stream.stream_id, **page._asdict())
    return [read_event(row) for row in rows]


async def diff(view: Scope, stream: StreamKey, a: AsOf, b: AsOf) -> dict[str, ValueChange]:
    """What is different at ``b`` from how it was at ``a``, by key."""
    before = await metadata_as_of(view, stream, a)
    after = await metadata_as_of(view, stream, b)
    changes = {
        key: ValueChange(before.get(key, MISSING), after.get(key, MISSING))
        for key in sorted(before.keys() | after.keys())
    }
    return {key: change for key, change in changes.items() if not _same(change)}


def _same(change: ValueChange) -> bool:
    """JSON's equality, in which True is not 1."""
    if change.old is MISSING or change.new is MISSING:
        return False
    return indexed_value(change.old, "value") == indexed_value(change.new, "value")
