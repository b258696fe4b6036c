"""The tables: the log, the heads of its streams, upstream's two, and the read models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sqlalchemy import (
    TIMESTAMP,
    Column,
    Constraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    text,
)

from eventmeta.errors import InvalidIdentifier
from eventmeta.identifiers import check_table_name
from projections import Projection, metadata_projection
from projections.types import BigInt, EventId, LongText, SessionId, UtcDateTime

if TYPE_CHECKING:
    from eventmeta.dialects.base import Dialect


MAX_NAME = 45
"""Names of indexes and triggers are made of those of tables; databases end at 63 or 64."""


@dataclass(frozen=True)
class TableNames:
    """What the tables are called; the first two as upstream calls them.

    Raises:
        InvalidIdentifier: A name is not letters, digits and underscores, or too long.
    """

    sessions: str = "agent_sessions"
    messages: str = "agent_messages"
    session_metadata: str = "agent_sessions_metadata"
    events: str = "agent_events"
    streams: str = "agent_streams"
    metadata_changes: str = "agent_metadata_changes"

    def __post_init__(self) -> None:
        """Check every name, for they become part of statements."""
        names = [check_table_name(name) for name in asdict(self).values()]
        for name in names:
            if len(name) > MAX_NAME:
                raise InvalidIdentifier(
                    "table name",
                    name,
                    f"has over {MAX_NAME} characters, which leaves none for its indexes",
                )
            if names.count(name) > 1:
                raise InvalidIdentifier("table name", name, "is given to two tables")


@dataclass(frozen=True)
class Tables:
    """The tables of one store, and its read models.

    ``metadata_changes`` is not among them: it is a view, made with the tables.
    """

    names: TableNames
    metadata: MetaData
    sessions: Table
    messages: Table
    streams: Table
    events: Table
    session_metadata: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The read models that every append maintains."""
        return (self.session_metadata,)


def define_tables(names: TableNames, dialect: Dialect) -> Tables:
    """The tables of a store, as ``dialect`` wants their keys."""
    metadata = MetaData()
    return Tables(
        names=names,
        metadata=metadata,
        sessions=_sessions(metadata, names),
        messages=_messages(metadata, names),
        streams=_streams(metadata, names),
        events=_events(metadata, names, dialect.event_keys),
        session_metadata=metadata_projection(metadata, names.session_metadata),
    )


def _created_at() -> Column[object]:
    return Column(
        "created_at",
        TIMESTAMP(timezone=False),
        server_default=text("CURRENT_TIMESTAMP"),
        nullable=False,
    )


def _sessions(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.sessions,
        metadata,
        Column("session_id", SessionId, primary_key=True),
        _created_at(),
        Column(
            "updated_at",
            TIMESTAMP(timezone=False),
            server_default=text("CURRENT_TIMESTAMP"),
            nullable=False,
        ),
    )


def _messages(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.messages,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=True),
        Column(
            "session_id",
            SessionId,
            ForeignKey(f"{names.sessions}.session_id", ondelete="CASCADE"),
            nullable=False,
        ),
        Column("message_data", LongText, nullable=False),
        _created_at(),
        Index(f"idx_{names.messages}_session_time", "session_id", "created_at"),
        sqlite_autoincrement=True,
    )


def _streams(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.streams,
        metadata,
        Column("stream_id", SessionId, primary_key=True),
        Column("stream_type", String(16), primary_key=True),
        Column("version", BigInt, nullable=False),
        Column("recorded_at", UtcDateTime, nullable=False),
    )


def _events(
    metadata: MetaData, names: TableNames, keys: Callable[[str], tuple[Constraint | Index, ...]]
) -> Table:
    return Table(
        names.events,
        metadata,
        Column("position", BigInt, nullable=False),
        Column("stream_type", String(16), nullable=False),
        Column("stream_id", SessionId, nullable=False),
        Column("version", BigInt, nullable=False),
        Column("event_id", EventId, nullable=False),
        Column("type", String(64), nullable=False),
        Column("data", LongText, nullable=False),
        Column("actor", String(255)),
        Column("context", LongText),
        Column("recorded_at", UtcDateTime, nullable=False),
        *keys(names.events),
        sqlite_autoincrement=True,
    )
