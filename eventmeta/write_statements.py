"""The statements of the write path, each written once and compiled for the store's database.

Every one takes a whole batch as one JSON parameter, so there is no limit on how many rows it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnClause,
    Executable,
    FromClause,
    Integer,
    String,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    select,
    table,
)
from sqlalchemy.types import TypeEngine

from eventmeta.dialects import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.projector import remove_rows, write_rows
from eventmeta.tables import Tables
from projections import EVENT_COLUMNS, Projection
from projections.types import LongText, SessionId, UtcDateTime

_KEY: Mapping[str, TypeEngine[Any]] = {"stream_id": SessionId, "stream_type": String(16)}
_SESSION: Mapping[str, TypeEngine[Any]] = {"session_id": SessionId}
_NUMBER: Mapping[str, TypeEngine[Any]] = {"n": Integer()}
_ITEM: Mapping[str, TypeEngine[Any]] = {
    **_NUMBER,
    **_SESSION,
    "message_data": LongText,
    "recorded_at": UtcDateTime(),
}


@dataclass(frozen=True)
class WriteStatements:
    """What the write path runs, in the order in which a batch runs it. Compiled at first use."""

    tables: Tables
    dialect: Dialect

    # --- Streams --------------------------------------------------------------------------------

    @cached_property
    def lock_streams(self) -> list[Statement]:
        """``streams``, ``now`` → the heads, which the transaction owns from then on."""
        keys = self.dialect.recordset("streams", _KEY)
        return self._compile(self.dialect.lock_streams(self.tables.streams, keys))

    @cached_property
    def save_streams(self) -> Statement:
        """``streams`` with their new ``version`` and ``recorded_at``."""
        heads = self.tables.streams
        columns = {name: heads.c[name].type for name in heads.c.keys()}  # noqa: SIM118
        rows = self.dialect.recordset("streams", columns)
        source = select(*(rows.c[name] for name in columns))
        return self._one(
            self.dialect.upsert(heads, list(columns), source, ("version", "recorded_at"))
        )

    @cached_property
    def find_events(self) -> Statement:
        """``events`` (stream and event id) → those that are recorded already."""
        log = self.tables.events
        wanted = self.dialect.recordset("events", {**_KEY, "event_id": log.c.event_id.type})
        same = and_(*(log.c[name] == wanted.c[name] for name in wanted.c.keys()))  # noqa: SIM118
        found = self.dialect.look_up(wanted, [log.c[name] for name in EVENT_COLUMNS], same)
        return self._one(self.dialect.current(found))

    # --- Sessions and their items ---------------------------------------------------------------

    @cached_property
    def create_sessions(self) -> Statement:
        """``sessions`` that are missing are created, others left alone."""
        return self._sessions(touch=False)

    @cached_property
    def touch_sessions(self) -> Statement:
        """``sessions`` that are missing are created, others get a new ``updated_at``."""
        return self._sessions(touch=True)

    def _sessions(self, *, touch: bool) -> Statement:
        rows = self.dialect.recordset("sessions", _SESSION)
        now = func.current_timestamp()
        source = select(rows.c.session_id, now).order_by(rows.c.session_id)
        columns = ["session_id", "updated_at"]
        update = ("updated_at",) if touch else ()
        return self._one(self.dialect.upsert(self.tables.sessions, columns, source, update))

    @cached_property
    def lock_session(self) -> Statement:
        """``session_id`` → its row, if there is one, owned against upstream's writers too."""
        sessions = self.tables.sessions
        query = select(sessions.c.session_id).where(
            sessions.c.session_id == bindparam("session_id")
        )
        return self._one(query.with_for_update())

    @cached_property
    def insert_items(self) -> list[Statement]:
        """``items`` in the order of ``n`` → ``session_id, id``."""
        items = self.dialect.recordset("items", _ITEM)
        return self._compile(self.dialect.insert_items(self.tables.messages, items))

    @cached_property
    def insert_items_at(self) -> list[Statement]:
        """``items``, with the time of the item ``at``, so that they take its place."""
        messages = self.tables.messages
        items = self.dialect.recordset("items", _ITEM)
        place = messages.alias("place")
        source = (
            select(items.c.session_id, items.c.message_data, place.c.created_at)
            .select_from(items.join(place, place.c.id == bindparam("at")))
            .order_by(items.c.n)
        )
        columns = ["session_id", "message_data", "created_at"]
        return [self._one(insert(messages).from_select(columns, source))]

    @cached_property
    def item_ids(self) -> Statement:
        """``session_id`` → the ids of its items, in order."""
        messages = self.tables.messages
        query = select(messages.c.id).where(messages.c.session_id == bindparam("session_id"))
        return self._one(self.dialect.current(query.order_by(messages.c.id)))

    @cached_property
    def last_items(self) -> Statement:
        """``session_id``, ``count`` → ``id, message_data`` of its last items, latest first."""
        messages = self.tables.messages
        query = (
            select(messages.c.id, messages.c.message_data)
            .where(messages.c.session_id == bindparam("session_id"))
            .order_by(messages.c.created_at.desc(), messages.c.id.desc())
            .limit(bindparam("count"))
        )
        return self._one(query.with_for_update())

    @cached_property
    def delete_items(self) -> Statement:
        """``items``, by their ``id``."""
        gone = self.dialect.recordset("items", {"id": Integer()})
        ids = select(gone.c.id).subquery("gone")
        return self._one(self.dialect.delete_matching(self.tables.messages, ids))

    @cached_property
    def delete_session(self) -> Statement:
        """``session_id``: its row."""
        sessions = self.tables.sessions
        return self._one(delete(sessions).where(sessions.c.session_id == bindparam("session_id")))

    # --- Metadata -------------------------------------------------------------------------------

    @cached_property
    def all_keys(self) -> Statement:
        """``session_id`` → the keys it has."""
        metadata = self.tables.session_metadata.table
        query = select(metadata.c.key).where(metadata.c.session_id == bindparam("session_id"))
        return self._one(self.dialect.current(query))

    @cached_property
    def present_keys(self) -> Statement:
        """``session_id``, ``keys`` → those of the keys that it has."""
        metadata = self.tables.session_metadata.table
        wanted = self.dialect.recordset("keys", {"key": String(255)})
        # Not a join: SQLite would go through all wanted keys for each key of the session.
        query = select(metadata.c.key).where(
            metadata.c.session_id == bindparam("session_id"),
            metadata.c.key.in_(select(wanted.c.key)),
        )
        return self._one(self.dialect.current(query))

    # --- Events ---------------------------------------------------------------------------------

    @cached_property
    def allocate(self) -> list[Statement]:
        """``numbers`` (n = 1, 2, …) → a position for each."""
        numbers = self.dialect.recordset("numbers", _NUMBER)
        return self._compile(self.dialect.allocate(self.tables, numbers))

    @cached_property
    def insert_events(self) -> Statement:
        """``events``, complete."""
        rows = self._events()
        source = select(*(rows.c[name] for name in EVENT_COLUMNS)).order_by(rows.c.position)
        return self._one(insert(self.tables.events).from_select(list(EVENT_COLUMNS), source))

    @cached_property
    def project(self) -> list[tuple[Projection, Statement, Statement]]:
        """``events``, ``first`` → each read model: what removes rows, and what writes them."""
        events = self.dialect.relation(self.dialect.appended(self.tables, self._events()))
        return [
            (
                projection,
                self._one(remove_rows(projection, self.dialect, events)),
                self._one(write_rows(projection, self.dialect, events)),
            )
            for projection in self.tables.projections
        ]

    @cached_property
    def append_at_once(self) -> dict[bool, Statement] | None:
        """The one statement for a batch of plain appends: without and with items."""
        columns: list[ColumnClause[Any]] = [column(name) for name in EVENT_COLUMNS]
        appended = table("_appended", *columns)
        events = self.dialect.relation(appended)
        projected = [
            write_rows(projection, self.dialect, events) for projection in self.tables.projections
        ]
        statements: dict[bool, Statement] = {}
        for with_items, names in ((False, ["events"]), (True, ["events", "items"])):
            sql = self.dialect.append_at_once(self.tables, projected, with_items=with_items)
            if sql is None:
                return None
            statements[with_items] = Statement(sql, names)
        return statements

    # --------------------------------------------------------------------------------------------

    def _events(self) -> FromClause:
        log = self.tables.events
        return self.dialect.recordset("events", {name: log.c[name].type for name in EVENT_COLUMNS})

    def _one(self, executable: Executable) -> Statement:
        return self.dialect.compile(executable)

    def _compile(self, executables: Sequence[Executable]) -> list[Statement]:
        return [self.dialect.compile(executable) for executable in executables]
