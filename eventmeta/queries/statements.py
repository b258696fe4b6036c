"""The statements of all reads, compiled at first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    and_,
    bindparam,
    or_,
    select,
)
from sqlalchemy.types import TypeEngine

from eventmeta.database.reader import Lookup
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.queries.conversation_statements import ConversationStatements
from eventmeta.queries.history_statements import LIMIT, StreamStatements
from eventmeta.queries.moments import last_version, recorded_by
from eventmeta.queries.ownership import OWNER, OwnerFilter
from eventmeta.read_models.fold import select_rows
from eventmeta.tables.tables import Tables
from projections import EVENT_COLUMNS, METADATA_EVENTS, AnySelect
from projections.types import SessionId

_TIMES = ("created_at", "updated_at")

NO_LIMIT = 2**63 - 1
"""The value of the parameter ``limit`` for all rows."""

LIKE_ESCAPE = "|"
"""The character of a pattern that makes the next one stand for itself."""


@dataclass(frozen=True)
class ReadStatements:
    """The statements that sessions and stores read by, limited by ``ownership``.

    If ``ownership`` limits anything, every statement takes the user as ``owner`` besides its own
    parameters.

    Each property that is a statement says what the statement does, then its parameters → the
    columns of its rows.
    """

    tables: Tables
    dialect: Dialect
    ownership: OwnerFilter

    @cached_property
    def metadata(self) -> Lookup:
        """Select all metadata of a session: ``session_id`` → ``n, key, value``."""
        requests = self.dialect.recordset("requests", self._request)
        return Lookup(together=self._look_up(requests), alone=self._look_up_alone())

    @cached_property
    def metadata_of_keys(self) -> Lookup:
        """Select metadata of a session by keys: ``session_id``, ``keys`` → ``n, key, value``."""
        key = self.tables.session_metadata.table.c.key
        requests, wanted = self.dialect.keyed_recordset("requests", self._request, key)
        together = self._look_up(requests, wanted)
        is_among = self.dialect.is_among("keys", key)
        return Lookup(together, None if is_among is None else self._look_up_alone(is_among))

    @property
    def _request(self) -> dict[str, TypeEngine[Any]]:
        owner = {OWNER: SessionId} if self.ownership.is_limited else {}
        return {"n": Integer(), "session_id": SessionId, **owner}

    def _look_up(self, requests: FromClause, *wanted: ColumnElement[bool]) -> Statement:
        current = self.tables.session_metadata.table.c
        same = and_(
            current.session_id == requests.c.session_id,
            *wanted,
            *self.ownership.of_session(requests.c.session_id, requests.c.get(OWNER)),
        )
        found = (current.key, current.value)
        return self.dialect.compile(self.dialect.look_up(requests, found, same, requests.c.n))

    def _look_up_alone(self, *wanted: ColumnElement[bool]) -> Statement:
        current = self.tables.session_metadata.table.c
        query = select(bindparam("n", type_=Integer()), current.key, current.value).where(*wanted)
        return self.dialect.compile(self.ownership.within(query, current.session_id))

    @cached_property
    def sessions_by_value(self) -> Statement:
        """Select sessions by a metadata value, in the order of their ids.

        ``key``, ``indexed_value``, ``after``, ``limit`` → ``session_id``.
        """
        query = self._by_value(self.tables.session_metadata.table)
        return self.dialect.compile(query.limit(LIMIT))

    def _by_value(self, state: FromClause) -> AnySelect:
        return (
            select(state.c.session_id)
            .where(
                state.c.key == bindparam("key"),
                state.c.indexed_value == bindparam("indexed_value"),
                state.c.session_id > bindparam("after"),
                *self.ownership.of_session(state.c.session_id),
            )
            .order_by(state.c.session_id)
        )

    @cached_property
    def sessions_by_value_as_of(self) -> dict[str, Statement]:
        """Select sessions by a metadata value as of a bound, in the order of their ids.

        ``key``, ``indexed_value``, ``after``, ``limit``, ``bound``, ``pattern`` → ``session_id``.
        There is one statement for each column of the log that can be the bound. ``pattern`` is the
        LIKE pattern of the payloads that name the key, so that no others have to be parsed.
        """
        log = self.tables.events
        statements: dict[str, Statement] = {}
        for name in ("position", "recorded_at"):
            bound = bindparam("bound", type_=log.c[name].type)
            source: FromClause = log
            past = log.c[name] <= bound
            if name == "recorded_at":
                source, past = recorded_by(log, bound)
            events = (
                select(*(log.c[column] for column in EVENT_COLUMNS))
                .select_from(source)
                .where(
                    log.c.stream_type == "session",
                    or_(*(log.c.type == kind for kind in sorted(METADATA_EVENTS))),
                    past,
                    log.c.data.like(bindparam("pattern"), escape=LIKE_ESCAPE),
                )
            )
            fold = select_rows(
                self.tables.session_metadata, self.dialect.relation(events.subquery("events"))
            ).subquery("state")
            seen = self._seen_at(fold.c.session_id, name, bound)
            statements[name] = self.dialect.compile(self._by_value(fold).where(*seen).limit(LIMIT))
        return statements

    def _seen_at(
        self, session_id: ColumnElement[str], column: str, bound: ColumnElement[Any]
    ) -> list[ColumnElement[bool]]:
        if column != "recorded_at":
            return self.ownership.at(session_id, column, bound)
        last = last_version(self.tables.events, bound, stream_id=session_id, stream_type="session")
        return self.ownership.at(session_id, "version", last)

    # --- Sessions -------------------------------------------------------------------------------

    @cached_property
    def session(self) -> Statement:
        """Select a session if it exists: ``session_id`` → ``session_id``."""
        sessions = self.tables.sessions
        return self.dialect.compile(
            self.ownership.within(select(sessions.c.session_id), sessions.c.session_id)
        )

    @cached_property
    def first_sessions(self) -> Statement:
        """Select all sessions, the latest change first.

        ``limit``, ``offset`` → ``session_id, user_id, created_at, updated_at``.
        """
        offset = bindparam("offset", type_=BigInteger())
        return self.dialect.compile(self._latest_sessions().limit(LIMIT).offset(offset))

    @cached_property
    def next_sessions(self) -> Statement:
        """Select the sessions after one, the latest change first.

        ``updated_at``, ``session_id``, ``limit`` → ``session_id, user_id, created_at, updated_at``.
        """
        sessions = self.tables.sessions
        changed_at = self.dialect.exact_time(sessions.c.updated_at)
        moment = bindparam("updated_at", type_=sessions.c.updated_at.type)
        later = or_(
            changed_at < moment,
            and_(changed_at == moment, sessions.c.session_id < bindparam("session_id")),
        )
        return self.dialect.compile(self._latest_sessions().where(later).limit(LIMIT))

    def _latest_sessions(self) -> AnySelect:
        sessions = self.tables.sessions
        columns = (sessions.c[name] for name in ("session_id", "user_id", *_TIMES))
        query = select(*columns).where(*self.ownership.of_session(sessions.c.session_id))
        if self.ownership.is_limited:  # lets the database use the index on owners as well
            query = query.where(sessions.c.user_id == bindparam(OWNER))
        changed_at = self.dialect.exact_time(sessions.c.updated_at)
        return query.order_by(changed_at.desc(), sessions.c.session_id.desc())

    # --- Items ----------------------------------------------------------------------------------

    @cached_property
    def items(self) -> Statement:
        """Select the items of a session, in order: ``session_id`` → ``message_data``."""
        messages = self.tables.messages
        query = self.ownership.within(select(messages.c.message_data), messages.c.session_id)
        query = query.where(*self.dialect.in_main_branch(messages))
        return self.dialect.compile(query.order_by(messages.c.created_at, messages.c.id))

    @cached_property
    def last_items(self) -> Lookup:
        """Select the last items of a session, latest first.

        ``session_id``, ``limit`` → ``n, message_data, id``.
        """
        message = self.tables.messages.c
        columns, order = (message.message_data, message.id), (message.created_at, message.id)
        request = {**self._request, "limit": BigInteger()}
        requests = self.dialect.recordset("requests", request)
        main = self.dialect.in_main_branch(self.tables.messages)
        same = and_(
            message.session_id == requests.c.session_id,
            *main,
            *self.ownership.of_session(requests.c.session_id, requests.c.get(OWNER)),
        )
        together = self.dialect.look_up_last(requests, columns, same, order, requests.c.n)
        query = select(bindparam("n", type_=Integer()), *columns).where(*main)
        alone = self.ownership.within(query, message.session_id).order_by(
            *(column.desc() for column in order)
        )
        compile_ = self.dialect.compile
        return Lookup(
            together=None if together is None else compile_(together),
            alone=compile_(alone.limit(LIMIT)),
        )

    # --- Users, and the past ----------------------------------------------------------

    @cached_property
    def sessions(self) -> StreamStatements:
        """Return the statements that read the past of sessions."""
        return StreamStatements(self.tables, self.dialect, self.ownership, "session")

    @cached_property
    def users(self) -> StreamStatements:
        """Return the statements that read the past of users."""
        return StreamStatements(self.tables, self.dialect, self.ownership, "user")

    @cached_property
    def user(self) -> Statement:
        """Select the metadata of a user: ``user_id`` → ``metadata``, the document."""
        users = self.tables.users.table
        user_id = bindparam("user_id", type_=SessionId)
        query = select(users.c.metadata).where(
            users.c.user_id == user_id, *self.ownership.of_stream("user", user_id)
        )
        return self.dialect.compile(query)

    @cached_property
    def conversation(self) -> ConversationStatements | None:
        """Return the statements that read turn by turn; None without structured tables."""
        tables = self.tables
        if tables.conversation is None or tables.tool_calls is None:
            return None
        return ConversationStatements(
            tables.messages,
            tables.conversation.table,
            tables.tool_calls.table,
            self.dialect,
            self.ownership,
        )
