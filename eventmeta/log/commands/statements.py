"""The statements that commands run over sessions, items, metadata and users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Integer,
    String,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.tables.tables import Tables
from projections import HANDOVER, NOBODY, AnySelect
from projections.types import BigInt, LongText, SessionId, UtcDateTime

_SESSION: Mapping[str, TypeEngine[Any]] = {"session_id": SessionId}
_NUMBER: Mapping[str, TypeEngine[Any]] = {"n": Integer()}
_ITEM: Mapping[str, TypeEngine[Any]] = {
    **_NUMBER,
    **_SESSION,
    "message_data": LongText,
    "recorded_at": UtcDateTime(),
}


@dataclass(frozen=True)
class CommandStatements:
    """The statements of single commands, compiled at first use.

    Each property that is a statement says what the statement does, then its parameters → the
    columns of its rows.

    Attributes:
        tables: The store's tables.
        dialect: Its database.
        waits: Whether the statements wait for rows that an open transaction holds; see
            `AppendStatements`.
    """

    tables: Tables
    dialect: Dialect
    waits: bool = True

    # --- Sessions and their items ---------------------------------------------------------------

    @cached_property
    def create_sessions(self) -> Statement:
        """Insert the missing rows of ``sessions``, and leave the others alone."""
        return self._sessions(touch=False)

    @cached_property
    def touch_sessions(self) -> Statement:
        """Insert the missing rows of ``sessions``, and give the others a new ``updated_at``."""
        return self._sessions(touch=True)

    def _sessions(self, *, touch: bool) -> Statement:
        rows = self.dialect.recordset("sessions", _SESSION)
        owner = self._owner(rows.c.session_id)
        values = {"session_id": rows.c.session_id, "user_id": owner}
        now = self.dialect.utc_now
        if now is not None:
            values |= {"created_at": now, "updated_at": now}
        source = select(*values.values()).order_by(rows.c.session_id)
        update = ("updated_at", "user_id") if touch else ()
        return self._one(self.dialect.upsert(self.tables.sessions, [*values], source, update))

    @cached_property
    def assign_sessions(self) -> Statement:
        """Write the owners, as their heads name them, to the existing rows of ``sessions``."""
        sessions = self.tables.sessions
        rows = self.dialect.recordset("sessions", _SESSION)
        values = {"user_id": self._owner(sessions.c.session_id)}
        keys = select(rows.c.session_id).subquery("assigned")
        return self._one(self.dialect.update_matching(sessions, keys, values))

    def _owner(self, session_id: ColumnElement[str]) -> ColumnElement[str]:
        """Return the owner of a session, by its head as last saved; NULL if nobody owns it."""
        heads = self.tables.streams.alias("heads")
        return (
            select(func.nullif(heads.c.user_id, literal_column(f"'{NOBODY}'")))
            .where(heads.c.stream_id == session_id, heads.c.stream_type == "session")
            .correlate_except(heads)
            .scalar_subquery()
        )

    @cached_property
    def lock_session(self) -> Statement:
        """Lock the row of a session, against upstream's writers too: ``session_id`` → the row."""
        sessions = self.tables.sessions
        query = select(sessions.c.session_id).where(
            sessions.c.session_id == bindparam("session_id")
        )
        return self._one(self.dialect.locked(query, waits=self.waits))

    @cached_property
    def lock_sessions(self) -> Statement:
        """Lock the rows of a range of sessions: ``first``, ``last`` → the rows."""
        session_id = self.tables.sessions.c.session_id
        first, last = bindparam("first", type_=SessionId), bindparam("last", type_=SessionId)
        query = select(session_id).where(session_id.between(first, last))
        return self._one(query.order_by(session_id).with_for_update())

    @cached_property
    def insert_items(self) -> list[Statement]:
        """Insert items after all existing ones: ``items`` → ``session_id, id``.

        They are inserted in the order of ``n``. Items are read, here and by upstream's class, in
        the order of ``created_at`` and ``id``.
        """
        items = self.dialect.recordset("items", _ITEM)
        return self._compile(self.dialect.insert_items(self.tables.messages, items))

    @cached_property
    def items_ahead(self) -> Statement | None:
        """Select older items whose time is later: ``sessions`` → ``id, first``. See `ItemTimes`.

        Each session is given with its ``first`` new item. None if the database needs none of this.
        """
        sessions = self.dialect.recordset("sessions", {**_SESSION, "first": BigInt})
        query = self.dialect.items_ahead(self.tables.messages, sessions, waits=self.waits)
        return None if query is None else self._one(query)

    @cached_property
    def move_items(self) -> Statement | None:
        """Give each of ``items``, by its ``id``, the time of the item ``at``."""
        moved = self.dialect.recordset("items", {"id": BigInt, "at": BigInt})
        update = self.dialect.move_items(self.tables.messages, moved)
        return None if update is None else self._one(update)

    @cached_property
    def insert_items_at(self) -> Statement:
        """Insert ``items`` with the time of the item ``at``, so that they take its place."""
        messages = self.tables.messages
        items = self.dialect.recordset("items", _ITEM)
        place = messages.alias("place")
        source = (
            select(items.c.session_id, items.c.message_data, place.c.created_at)
            .select_from(items.join(place, place.c.id == bindparam("at")))
            .order_by(items.c.n)
        )
        columns = ["session_id", "message_data", "created_at"]
        return self._one(insert(messages).from_select(columns, source))

    @cached_property
    def item_ids(self) -> Statement:
        """Select the ids of a session's items, in order: ``session_id`` → ``id``."""
        main = self.dialect.in_main_branch(self.tables.messages)
        return self._one(self._current(self._item_ids.where(*main)))

    @cached_property
    def item_ids_of_all_branches(self) -> Statement:
        """Select the ids of a session's items, of all branches that upstream's class has made."""
        return self._one(self._current(self._item_ids))

    @property
    def _item_ids(self) -> AnySelect:
        messages = self.tables.messages
        query = select(messages.c.id).where(messages.c.session_id == bindparam("session_id"))
        return query.order_by(messages.c.id)

    @cached_property
    def last_items(self) -> Statement:
        """Lock the last items, latest first: ``session_id``, ``count`` → ``id, message_data``."""
        messages = self.tables.messages
        query = (
            select(messages.c.id, messages.c.message_data)
            .where(messages.c.session_id == bindparam("session_id"))
            .where(*self.dialect.in_main_branch(messages))
            .order_by(messages.c.created_at.desc(), messages.c.id.desc())
            .limit(bindparam("count"))
        )
        return self._one(self.dialect.locked(query, waits=self.waits))

    @cached_property
    def delete_items(self) -> Statement:
        """Delete ``items``, by their ``id``."""
        gone = self.dialect.recordset("items", {"id": BigInteger()})
        ids = select(gone.c.id).subquery("gone")
        return self._one(self.dialect.delete_matching(self.tables.messages, ids))

    @cached_property
    def delete_session(self) -> Statement:
        """Delete the row of the session ``session_id``."""
        sessions = self.tables.sessions
        return self._one(delete(sessions).where(sessions.c.session_id == bindparam("session_id")))

    # --- Metadata -------------------------------------------------------------------------------

    @cached_property
    def all_keys(self) -> Statement:
        """Select all metadata keys of a session: ``session_id`` → ``key``."""
        metadata = self.tables.session_metadata.table
        query = select(metadata.c.key).where(metadata.c.session_id == bindparam("session_id"))
        return self._one(self._current(query))

    @cached_property
    def present_keys(self) -> Statement:
        """Select those of ``keys`` that a session has: ``session_id``, ``keys`` → ``key``."""
        metadata = self.tables.session_metadata.table
        wanted = self.dialect.recordset("keys", {"key": String(255)})
        # Not a join: SQLite would scan all wanted keys for each key of the session.
        query = select(metadata.c.key).where(
            metadata.c.session_id == bindparam("session_id"),
            metadata.c.key.in_(select(wanted.c.key)),
        )
        return self._one(self._current(query))

    # --- Users ----------------------------------------------------------------------------------

    @cached_property
    def owned_sessions(self) -> Statement:
        """Select the ids of a user's sessions: ``user_id`` → ``stream_id``."""
        return self._one(self._owned_sessions())

    @cached_property
    def owned_sessions_now(self) -> Statement:
        """Select the ids of a user's sessions as of now, not as of the transaction's begin."""
        return self._one(self._current(self._owned_sessions()))

    def _owned_sessions(self) -> AnySelect:
        heads = self.tables.streams
        return select(heads.c.stream_id).where(
            heads.c.user_id == bindparam("user_id", type_=SessionId),
            heads.c.stream_type == "session",
        )

    @cached_property
    def seen_since(self) -> Statement:
        """Select the version from which the owner sees a session: ``session_id`` → ``version``.

        There is no row if the owner sees the session from its first version.
        """
        heads = self.tables.streams
        query = select(heads.c.version).where(
            heads.c.stream_id == bindparam("session_id", type_=SessionId),
            heads.c.stream_type == HANDOVER,
        )
        return self._one(self.dialect.current(query))

    @cached_property
    def user_metadata(self) -> Statement:
        """Lock the row of an existing user: ``user_id`` → ``metadata``, the document."""
        users = self.tables.users.table
        query = select(users.c.metadata).where(
            users.c.user_id == bindparam("user_id", type_=SessionId)
        )
        # Lock the row before drawing a position: on MySQL the writer that holds the row may wait
        # for the counter.
        return self._one(self.dialect.locked(query, waits=self.waits, key_share=True))

    def _current(self, query: AnySelect) -> AnySelect:
        return self.dialect.current(query, waits=self.waits)

    def _one(self, executable: Executable) -> Statement:
        return self.dialect.compile(executable)

    def _compile(self, executables: Sequence[Executable]) -> list[Statement]:
        return [self.dialect.compile(executable) for executable in executables]
