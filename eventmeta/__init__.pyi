"""The public names, and where they are defined. Each is imported when it is asked for."""

from .actor import acting_as
from .arrow import ExportProgress
from .backfill import Backfill, backfill_conversations
from .comparison import Difference
from .database_errors import (
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
from .errors import (
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
from .events import NewEvent, Position, RecordedEvent
from .history import MISSING, HistoryEntry, ValueChange
from .identifiers import new_event_id
from .options import WriteOptions
from .progress import progress_bar
from .projection_errors import (
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
from .projector import (
    OpenAppend,
    ParkedStream,
    ProjectionStatus,
    Projector,
    RebuildProgress,
    Rebuilt,
    Status,
    SubscriptionStatus,
)
from .run_hooks import UsageHooks
from .search import SessionEntry
from .session import MetadataSession, SessionOptions, Turn
from .sqlite_session import SQLiteSession
from .store import MetadataStore
from .table_names import TableOptions
from .usage import GroupedUsage, UsageTotals
from .user_store import UserStore
from .users import User
from .verify import verify_projection

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
