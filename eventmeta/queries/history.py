"""The past of a session or user: its state at a point, its events, and what changed."""

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
"""Stands for a missing key, as None would mean a stored JSON null."""


@dataclass(frozen=True, slots=True)
class ValueChange:
    """The change of one key: its old and its new value, ``MISSING`` if there is none."""

    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event of a session or user, with the old and new value of each key that it changed."""

    event: RecordedEvent
    changes: Mapping[str, ValueChange]

    @property
    def version(self) -> int:
        """Return the version that the stream had after the event."""
        return self.event.version

    @property
    def type(self) -> str:
        """Return the type of the event."""
        return self.event.type

    @property
    def actor(self) -> str | None:
        """Return the actor who made the change; None if unknown."""
        return self.event.actor

    @property
    def recorded_at(self) -> datetime:
        """Return the time of the event, in UTC."""
        return self.event.recorded_at


async def metadata_as_of(
    view: Scope, stream: StreamKey, bound: AsOf, keys: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the metadata as of ``bound``: the fold of the events up to there."""
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
    """Return the metadata of a user, read from ``rows``; empty if there is no such user."""
    document: dict[str, Any] = parse(rows[0][0] if rows and rows[0][0] else "{}")
    return {key: document[key] for key in sorted(document)}


def _statements(view: Scope, stream: StreamKey) -> StreamStatements:
    return view.reads.users if stream.stream_type == "user" else view.reads.sessions


class Page(NamedTuple):
    """A page of a history: which entries to read."""

    key: str | None
    limit: int
    after: int

    @classmethod
    def of(cls, key: object, limit: object, after: object) -> Page:
        """Return the page that a caller asks for.

        Raises:
            InvalidInput: The key, limit or version cannot be used.
        """
        if isinstance(after, Position):
            raise InvalidInput(f"after={after!r} is a Position; give a version of the session")
        return cls(
            None if key is None else check_key(key),
            NO_LIMIT if limit is None else check_count("limit", limit),
            0 if after is None else check_count("after", after),
        )


async def history(view: Scope, stream: StreamKey, page: Page) -> list[HistoryEntry]:
    """Return the events of a stream in order, each with the changes that it made."""
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
    """Return the metadata before ``event``.

    If the event changes no metadata, the state after it is read, which is the same: the event
    before it may be invisible.
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
    """Return the changes between the points ``a`` and ``b``, by key."""
    before = await metadata_as_of(view, stream, a)
    after = await metadata_as_of(view, stream, b)
    changes = {
        key: ValueChange(before.get(key, MISSING), after.get(key, MISSING))
        for key in sorted(before.keys() | after.keys())
    }
    return {key: change for key, change in changes.items() if not _same(change)}


def _same(change: ValueChange) -> bool:
    """Return whether the old and the new value are equal as JSON, where True is not 1."""
    if change.old is MISSING or change.new is MISSING:
        return False
    return indexed_value(change.old, "value") == indexed_value(change.new, "value")
