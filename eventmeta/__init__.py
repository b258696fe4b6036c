"""An event-sourced metadata store for sessions of the OpenAI Agents SDK.

Every change is appended to an immutable log in the transaction that updates the current state, so
that the present is an index lookup and the past is a fold of the same log.
"""

import projections

if not hasattr(projections, "EVENT_COLUMNS"):
    raise ImportError(
        "eventmeta needs its own top-level package `projections`, but this app has another package "
        f"or folder of that name, which hides it: {projections.__file__ or projections.__path__}. "
        "Rename that one, or move it into a package of the app."
    )
del projections

from eventmeta.actor import acting_as
from eventmeta.errors import (
    AppendRejected,
    DatabaseBusy,
    DatabaseFailure,
    EventIdReused,
    EventMetaError,
    InvalidIdentifier,
    InvalidInput,
    InvalidKey,
    InvalidPoint,
    InvalidValue,
    ItemAlreadyPopped,
    OutcomeUnknown,
    StoreClosed,
    TablesMissing,
    UnsupportedEngine,
    ValueTooLarge,
    VersionConflict,
)
from eventmeta.events import NewEvent, Position, RecordedEvent
from eventmeta.history import MISSING, HistoryEntry, ValueChange
from eventmeta.identifiers import new_event_id
from eventmeta.options import WriteOptions
from eventmeta.projector import Difference
from eventmeta.session import MetadataSession
from eventmeta.store import MetadataStore, verify_projection

__version__ = "0.1.0"

__all__ = [
    "AppendRejected",
    "DatabaseBusy",
    "DatabaseFailure",
    "Difference",
    "EventIdReused",
    "EventMetaError",
    "HistoryEntry",
    "InvalidIdentifier",
    "InvalidInput",
    "InvalidKey",
    "InvalidPoint",
    "InvalidValue",
    "ItemAlreadyPopped",
    "MISSING",
    "MetadataSession",
    "MetadataStore",
    "NewEvent",
    "OutcomeUnknown",
    "Position",
    "RecordedEvent",
    "StoreClosed",
    "TablesMissing",
    "UnsupportedEngine",
    "ValueChange",
    "ValueTooLarge",
    "VersionConflict",
    "WriteOptions",
    "acting_as",
    "new_event_id",
    "verify_projection",
]
