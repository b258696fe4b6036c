"""Read models: tables, and the Select that folds a relation of events into their rows.

A projection never asks where its events come from. It needs SQLAlchemy and the shape of an event,
which it receives as an [`Events`][projections.relation.Events] relation; it does not know
``eventmeta``, which imports this package and not the reverse.
"""

from projections.metadata import METADATA_EVENTS, metadata_projection
from projections.projection import Projection
from projections.relation import EVENT_COLUMNS, AnySelect, Events

__all__ = [
    "EVENT_COLUMNS",
    "METADATA_EVENTS",
    "AnySelect",
    "Events",
    "Projection",
    "metadata_projection",
]
