"""The public names, and where they are defined. Each is imported when it is asked for."""

from .core.actor import acting_as
from .core.database_errors import (
    CorruptEvent,
    DatabaseBusy,
    DatabaseFailure,
    DatabaseRefused,
    DatabaseUnavailable,
    OutcomeUnknown,
    SettingsConflict,
    StandbyServer,
    TablesMissing,
    UnexpectedRowCount,
    UnsupportedEngine,
    UnsupportedSchema,
)
from .core.errors import (
    AppendRejected,
    ContextLost,
    EventIdReused,
    EventMetaError,
    InvalidIdentifier,
    InvalidInput,
    InvalidKey,
    InvalidPoint,
    InvalidValue,
    ItemAlreadyPopped,
    MissingExtra,
    SessionNotFound,
    StoreClosed,
    StructuredMetadataOff,
    UnknownOption,
    UserMismatch,
    UserNotFound,
    UserUnknown,
    ValueTooLarge,
    VersionConflict,
)
from .core.events import NewEvent, Position, RecordedEvent
from .core.projection_errors import (
    InvalidProjection,
    LeaseLost,
    ProjectionBehind,
    ProjectionError,
    ProjectionFailed,
    ProjectionOutdated,
    RebuildFailed,
    RebuildUnderWay,
    UnknownProjection,
)
from .core.usage import GroupedUsage, UsageTotals
from .core.validation import new_event_id
from .extensions.progress_bar import progress_bar
from .governance.verify import verify_projection
from .log.arrow import ExportProgress
from .log.commands.options import WriteOptions
from .projector.parked_streams import ParkedStream
from .projector.progress import RebuildProgress, Rebuilt
from .projector.status import OpenAppend, ProjectionStatus, Status, SubscriptionStatus
from .projector.worker import Projector
from .queries.history import MISSING, HistoryEntry, ValueChange
from .queries.sessions import SessionEntry
from .read_models.comparison import Difference
from .session.arguments import SessionOptions
from .session.conversation import Turn
from .session.hooks import UsageHooks
from .session.metadata_session import MetadataSession
from .session.sqlite_session import SQLiteSession
from .store.backfill import Backfill, backfill_conversations
from .store.metadata_store import MetadataStore
from .store.user import User
from .store.user_store import UserStore
from .tables.names import TableOptions

__version__: str

__all__ = [
    "AppendRejected",
    "Backfill",
    "ContextLost",
    "CorruptEvent",
    "DatabaseBusy",
    "DatabaseFailure",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "Difference",
    "EventIdReused",
    "EventMetaError",
    "ExportProgress",
    "GroupedUsage",
    "HistoryEntry",
    "InvalidIdentifier",
    "InvalidInput",
    "InvalidKey",
    "InvalidPoint",
    "InvalidProjection",
    "InvalidValue",
    "ItemAlreadyPopped",
    "LeaseLost",
    "MISSING",
    "MetadataSession",
    "MetadataStore",
    "MissingExtra",
    "NewEvent",
    "OpenAppend",
    "OutcomeUnknown",
    "ParkedStream",
    "Position",
    "ProjectionBehind",
    "ProjectionError",
    "ProjectionFailed",
    "ProjectionOutdated",
    "ProjectionStatus",
    "Projector",
    "RebuildFailed",
    "RebuildProgress",
    "RebuildUnderWay",
    "Rebuilt",
    "RecordedEvent",
    "SQLiteSession",
    "SessionEntry",
    "SessionNotFound",
    "SessionOptions",
    "SettingsConflict",
    "StandbyServer",
    "Status",
    "StoreClosed",
    "StructuredMetadataOff",
    "SubscriptionStatus",
    "TableOptions",
    "TablesMissing",
    "Turn",
    "UnexpectedRowCount",
    "UnknownOption",
    "UnknownProjection",
    "UnsupportedEngine",
    "UnsupportedSchema",
    "UsageHooks",
    "UsageTotals",
    "User",
    "UserMismatch",
    "UserNotFound",
    "UserStore",
    "UserUnknown",
    "ValueChange",
    "ValueTooLarge",
    "VersionConflict",
    "WriteOptions",
    "acting_as",
    "backfill_conversations",
    "new_event_id",
    "progress_bar",
    "verify_projection",
]
