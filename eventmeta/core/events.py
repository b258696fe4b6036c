"""Events before and after they are recorded, the types of the built-in ones, and stream keys."""

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
    """The identity of a stream: its id and its type, in the order of the table's key."""

    stream_id: str
    stream_type: StreamType = "session"


class Position(int):
    """A place in the global order of the log.

    It is a separate type, so that ``as_of`` can tell a position from the version of a stream.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event of an app's own, before it is recorded.

    Attributes:
        type: A name for what happened, in the past tense: lower case, digits, dots, underscores.
        data: The facts, as a JSON object.
        event_id: A UUID that makes a retry safe; generated when None.
        actor: The name of the actor; the ambient actor (``acting_as``) when None.
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
        type: The name of what happened.
        data: The facts. Those of a metadata event hold ``changes``: ``[key, JSON text]``, with None
            for the text if the key was removed.
        actor: The name of the actor, if known.
        context: Reason, trace id and the like.
        recorded_at: The time at which it was recorded, in UTC. Order is by version and position,
            never by time: within a stream the time goes back only if a wrong clock recorded an
            earlier event.
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
"""For each event type, the functions that turn each older format of the data into the next.

The data names its format in ``"v"``; the first format has none.
"""


def upcast(event_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` in the newest format of its type."""
    steps = UPCASTERS.get(event_type)
    if steps is None:
        return data  # an app's own type: if there is a "v", it belongs to the app
    for step in steps[data.get("v", 1) - 1 :]:
        data = step(data)
    return data


def read_event(row: Sequence[Any]) -> RecordedEvent:
    """Return a row of the log, with the columns ``projections.EVENT_COLUMNS``, as an event.

    Raises:
        CorruptEvent: The row was changed outside the store.
    """
    position, stream_type, stream_id, version, event_id, kind, data, actor, context, at = row
    problem = "has an unknown type of stream"
    try:
        if stream_type in _STREAM_TYPES:
            problem = "has data that cannot be read"
            facts = upcast(kind, _object(data))
            problem = f"has data that does not fit the type {kind!r}"
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
    """Raise unless ``facts`` are as the library itself needs them for events of type ``kind``."""
    if kind in (METADATA_SET, METADATA_DELETED):
        for key, text, *_ in facts["changes"]:
            if type(key) is not str or not isinstance(text, str | None):
                raise TypeError
    elif kind in (ITEMS_ADDED, ITEMS_REPLACED):
        if not all(type(item_id) is int for item_id in facts["item_ids"]):
            raise TypeError
    elif kind == USER_ASSIGNED and not isinstance(facts["user_id"], str | None):
        raise TypeError
