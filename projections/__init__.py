"""Read models: tables, and the Select that folds a relation of events into their rows.

A projection never asks where its events come from. It needs SQLAlchemy and the shape of an event,
which it receives as an [`Events`][projections.relation.Events] relation; it does not know
``eventmeta``, which imports this package and not the reverse.
"""

from projections.conversation import conversation_projection
from projections.metadata import METADATA_EVENTS, metadata_projection
from projections.ownership import (
    HANDOVER,
    NOBODY,
    USER_ASSIGNED,
    fold_handovers,
    fold_owners,
)
from projections.projection import (
    AnyProjection,
    AppliedProjection,
    ItemProjection,
    KnownEvent,
    Projection,
)
from projections.relation import (
    EVENT_COLUMNS,
    MESSAGE_COLUMNS,
    AnySelect,
    Event,
    Events,
    Messages,
)
from projections.tool_calls import tool_calls_projection
from projections.usage import USAGE_RECORDED, usage_projection
from projections.users import USER_CREATED, USER_DELETED, users_projection

__all__ = [
    "AnyProjection",
    "AnySelect",
    "AppliedProjection",
    "EVENT_COLUMNS",
    "Event",
    "Events",
    "ItemProjection",
    "KnownEvent",
    "MESSAGE_COLUMNS",
    "METADATA_EVENTS",
    "Messages",
    "HANDOVER",
    "NOBODY",
    "Projection",
    "USAGE_RECORDED",
    "USER_ASSIGNED",
    "USER_CREATED",
    "USER_DELETED",
    "conversation_projection",
    "fold_handovers",
    "fold_owners",
    "metadata_projection",
    "tool_calls_projection",
    "usage_projection",
    "users_projection",
]
