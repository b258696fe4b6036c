"""The read models, which stand without the library.

A projection is a table and the Select that folds a relation of events into its rows. The Select
does not know where its events come from. ``eventmeta`` imports this package, and not the reverse.

projection    what a projection is: one Select over a relation of events
relation      what a relation of events offers to it
types         column types that mean the same on every database
metadata      the current metadata of sessions
users         the users
ownership     the events by which sessions change hands
usage         the tokens that runs have used
items         items as the SDK writes them
item_tables   what the tables of items have in common
conversation  the conversation, turn by turn
tool_calls    calls of tools, with their outputs
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
