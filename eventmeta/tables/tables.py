"""The tables: the log, the heads of its streams, upstream's two, and the read models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

from eventmeta.tables.names import TableNames
from projections import (
    ItemProjection,
    Projection,
    conversation_projection,
    metadata_projection,
    tool_calls_projection,
    usage_projection,
    users_projection,
)
from projections.types import BigInt, EventId, LongText, SessionId, UtcDateTime, index_of_known

Keys = tuple[Constraint | Index, ...]
"""Constraints and indexes of a table."""

VERSIONED = "eventmeta_versioned"
"""The mark of tables that are not altered but rebuilt when the projection's version changes."""


@dataclass(frozen=True)
class Tables:
    """The tables of one store, and its read models.

    The view of metadata changes is not among them: it is created together with the tables.
    """

    names: TableNames
    metadata: MetaData
    sessions: Table
    messages: Table
    streams: Table
    events: Table
    checkpoints: Table
    parked_streams: Table
    settings: Table
    session_metadata: Projection
    users: Projection
    usage: Projection | None
    conversation: ItemProjection | None
    tool_calls: ItemProjection | None
    inline: tuple[Projection, ...] = ()

    @property
    def built_in(self) -> tuple[Projection, ...]:
        """Return the read models of the log that every store has."""
        always = (self.session_metadata, self.users)
        return always if self.usage is None else (*always, self.usage)

    @property
    def references(self) -> frozenset[tuple[str, str]]:
        """Return the pairs of tables of which the first refers to the second by a foreign key."""
        return frozenset(
            (table.name, key.column.table.name)
            for table in self.metadata.tables.values()
            for key in table.foreign_keys
        )

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Return the read models that every append maintains."""
        return (*self.built_in, *self.inline)

    @property
    def item_projections(self) -> tuple[ItemProjection, ...]:
        """Return the read models of items, which every change of a session's items maintains."""
        found = (self.tool_calls, self.conversation)
        return tuple(projection for projection in found if projection is not None)


def define_tables(names: TableNames, event_keys: Callable[[str], Keys]) -> Tables:
    """Return the tables of a store.

    Args:
        names: The names of the tables.
        event_keys: Makes the keys of the table of events in the form that its database needs.
    """
    metadata = MetaData()
    structured = bool(names.structured_metadata)
    messages = _messages(metadata, names)
    return Tables(
        names=names,
        metadata=metadata,
        sessions=_sessions(metadata, names),
        messages=messages,
        streams=_streams(metadata, names),
        events=_events(metadata, names, event_keys),
        checkpoints=_checkpoints(metadata, names),
        parked_streams=_parked_streams(metadata, names),
        settings=_settings(metadata, names),
        session_metadata=metadata_projection(metadata, names.session_metadata_table),
        users=users_projection(metadata, names.users_table),
        usage=usage_projection(metadata, names.usage_table) if structured else None,
        conversation=(
            conversation_projection(metadata, messages, names.conversation_table)
            if structured
            else None
        ),
        tool_calls=(
            tool_calls_projection(metadata, messages, names.tool_calls_table)
            if structured
            else None
        ),
    )


def _time(name: str) -> Column[object]:
    return Column(
        name,
        TIMESTAMP(timezone=False),
        server_default=text("CURRENT_TIMESTAMP"),
        nullable=False,
    )


def _sessions(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.sessions_table,
        metadata,
        Column("session_id", SessionId, primary_key=True),
        _time("created_at"),
        _time("updated_at"),
        Column(
            "user_id", SessionId, ForeignKey(f"{names.users_table}.user_id", ondelete="SET NULL")
        ),
        Index(f"idx_{names.sessions_table}_user_id", "user_id"),
    )


def _messages(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.messages_table,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=True),
        Column(
            "session_id",
            SessionId,
            ForeignKey(f"{names.sessions_table}.session_id", ondelete="CASCADE"),
            nullable=False,
        ),
        Column("message_data", LongText, nullable=False),
        _time("created_at"),
        Index(f"idx_{names.messages_table}_session_time", "session_id", "created_at"),
        sqlite_autoincrement=True,
    )


def _streams(metadata: MetaData, names: TableNames) -> Table:
    return Table(
        names.streams_table,
        metadata,
        Column("stream_id", SessionId, primary_key=True),
        Column("stream_type", String(16), primary_key=True),
        Column("version", BigInt, nullable=False),
        Column("recorded_at", UtcDateTime, nullable=False),
        Column("user_id", SessionId),
        index_of_known(f"idx_{names.streams_table}_user_id", "user_id"),
    )


def _events(metadata: MetaData, names: TableNames, keys: Callable[[str], Keys]) -> Table:
    return Table(
        names.events_table,
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
        *keys(names.events_table),
        sqlite_autoincrement=True,
    )


def _checkpoints(metadata: MetaData, names: TableNames) -> Table:
    """Return the table of checkpoints.

    During a fill, ``stream_id`` is the last stream that is filled, and ``until`` is the last
    position.
    """
    return Table(
        names.checkpoints_table,
        metadata,
        Column("projection", String(64), primary_key=True),
        Column("state", String(16), primary_key=True),
        Column("version", Integer, nullable=False),
        Column("position", BigInt, nullable=False),
        Column("stream_id", SessionId),
        Column("until", BigInt),
        Column("holder", String(64)),
        Column("epoch", BigInt, nullable=False),
        Column("expires_at", BigInt, nullable=False),
    )


def _parked_streams(metadata: MetaData, names: TableNames) -> Table:
    """Return the table; ``position`` is that of the stream's first event not applied."""
    return Table(
        names.parked_streams_table,
        metadata,
        Column("stream_id", SessionId, primary_key=True),
        Column("stream_type", String(16), primary_key=True),
        Column("projection", String(64), primary_key=True),
        Column("state", String(16), primary_key=True),
        Column("position", BigInt, nullable=False),
        Column("error", LongText, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("parked_at", UtcDateTime, nullable=False),
        Index(f"idx_{names.parked_streams_table}_projection", "projection", "state"),
    )


def _settings(metadata: MetaData, names: TableNames) -> Table:
    """Return the table of settings.

    It holds ``schema_version``, and ``structured_metadata``: ``true`` or ``false``.
    """
    return Table(
        names.settings_table,
        metadata,
        Column("name", String(64), primary_key=True),
        Column("value", String(255), nullable=False),
    )
