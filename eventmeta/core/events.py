"""Events before and after they are recorded, and the vocabulary of the built-in ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast

import orjson

from eventmeta.core.database_errors import CorruptEvent
from projections import USER_ASSIGNED, USER_CREATED, USER_DELETED

StreamType = Literal["session", "user"]
_STREAM_TYPES = ("session", "user")

METADATA_SET = "metadata_set"
METADATA_DELETED = "metadata_deleted"
ITEMS_ADDED = "items_added"
ITEM_POPPED = "item_popped"
ITEMS_REPLACED = "items_replaced"
SESSION_CLEARED = "session_cleared"
USAGE_RECORDED = "usage_recorded"

BUILT_IN_TYPES = frozenset(
    {
        METADATA_SET,
        METADATA_DELETED,
        ITEMS_ADDED,
        ITEM_POPPED,
        ITEMS_REPLACED,
        SESSION_CLEARED,
        USAGE_RECORDED,
        USER_ASSIGNED,
        USER_CREATED,
        USER_DELETED,
    }
)


class StreamKey(NamedTuple):
    """The identity of a stream, in the order of its key."""

    stream_id: str
    stream_type: StreamType = "session"


class Position(int):
    """A place in the global order of the log.

    A type of its own, so that ``as_of`` can tell it from a version of one stream.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What a caller may say of an event of its own.

    Attributes:
        type: What happened, in the past tense: lower case, digits, dots, underscores.
        data: The facts, as a JSON object.
        event_id: A UUID that makes a retry safe; generated when None.
        actor: Who did it; the ambient actor (``acting_as``) when None.
        context: Reason, trace id and the like; added to the ambient context.
    """

    type: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    event_id: str | None = None
    actor: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as the log holds it, for ever.

    Attributes:
        position: Its place in the global order; strictly increasing, never reused, with gaps.
        stream_type: ``"session"`` or ``"user"``.
        stream_id: The stream; a session's stream has the session's id.
        version: Its place in the stream: 1, 2, 3 … without holes.
        event_id: The UUID under which it was recorded.
        type: What happened.
        data: The facts. Those of a metadata event hold ``changes``: ``[key, JSON text]``, with None
            for the text where the key was removed.
        actor: Who did it, if known.
        context: Reason, trace id and the like.
        recorded_at: When, in UTC. Order is by version and position, never by time: within a stream
            it goes back only where an earlier event was recorded by a wrong clock.
    """

    position: Position
    stream_type: StreamType
    stream_id: str
    version: int
    event_id: str
    type: str
    data: Mapping[str, Any]
    actor: str | None
    context: Mapping[str, Any]
    recorded_at: datetime


Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: dict[str, list[Upcaster]] = {}
"""Per event type, the steps from each older payload to the next; a payload says its format in
``"v"``, and has none in the first."""


def upcast(event_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """``data`` in the newest format of its type."""
    steps = UPCASTERS.get(event_type)
    if steps is None:
        return data  # where "v", if there is one, is the app's own
    for step in steps[data.get("v", 1) - 1 :]:
        data = step(data)
    return data


def read_event(row: Sequence[Any]) -> RecordedEvent:
    """Return a row of the log, whose columns are ``projections.EVENT_COLUMNS``, as an event.

    Raises:
        CorruptEvent: Somebody has changed the row.
    """
    position, stream_type, stream_id, version, event_id, kind, data, actor, context, at = row
    problem = "is of no known kind of stream"
    try:
        if stream_type in _STREAM_TYPES:
            problem = "has data that cannot be read"
            facts = upcast(kind, _object(data))
            problem = f"has data that is not that of {kind!r}"
            if kind in BUILT_IN_TYPES:
                _check_facts(kind, facts)
            problem = "has a context that cannot be read"
            about = _object(context) if context else {}
            if isinstance(at, datetime):
                place = Position(position)
                event_id = str(event_id)
                return RecordedEvent(
                    place, stream_type, stream_id, version, event_id, kind, facts, actor, about, at
                )
            problem = f"has no time: {at!r}"
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise CorruptEvent(position, stream_id, version, problem)


def _object(text: str) -> dict[str, Any]:
    value = orjson.loads(text)
    if type(value) is not dict:
        raise TypeError
    return cast("dict[str, Any]", value)


def _check_facts(kind: str, facts: dict[str, Any]) -> None:
    """Raise unless ``facts`` are what the library itself relies on for ``kind``."""
    if kind in (METADATA_SET, METADATA_DELETED):
        for key, text, *_ in facts["changes"]:
            if type(key) is not str or not isinstance(text, str | None):
                raise TypeError
    elif kind in (ITEMS_ADDED, ITEMS_REPLACED):
        if not all(type(item_id) is int for item_id in facts["item_ids"]):
            raise TypeError
    elif kind == USER_ASSIGNED and not isinstance(facts["user_id"], str | None):
        raise TypeError
