"""The statements that read, compiled once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, String, and_, bindparam, select
from sqlalchemy.types import TypeEngine

from eventmeta.dialects import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.projector import rows_of
from eventmeta.reader import Lookup
from eventmeta.tables import Tables
from projections import EVENT_COLUMNS, AnySelect
from projections.types import BigInt, SessionId

NO_LIMIT = 2**63 - 1
"""As the parameter ``limit``: all rows."""

_LIMIT = bindparam("limit", type_=BigInteger())


@dataclass(frozen=True)
class ReadStatements:
    """What sessions and stores read."""

    tables: Tables
    dialect: Dialect

    @cached_property
    def metadata(self) -> Lookup:
        """``session_id`` → ``n, key, value`` of all its metadata."""
        current = self.tables.session_metadata.table
        alone = select(bindparam("n", type_=Integer()), current.c.key, current.c.value)
        return Lookup(
            together=self._look_up({"session_id": SessionId}),
            alone=self.dialect.compile(
                alone.where(current.c.session_id == bindparam("session_id"))
            ),
        )

    @cached_property
    def metadata_of_keys(self) -> Lookup:
        """``session_id, key`` → ``n, key, value`` of the key if the session has it."""
        return Lookup(together=self._look_up({"session_id": SessionId, "key": String(255)}))

    def _look_up(self, keys: dict[str, TypeEngine[Any]]) -> Statement:
        current = self.tables.session_metadata.table
        requests = self.dialect.recordset("requests", {"n": Integer(), **keys})
        same = and_(*(current.c[name] == requests.c[name] for name in keys))
        found = (current.c.key, current.c.value)
        return self.dialect.compile(self.dialect.look_up(requests, found, same, requests.c.n))

    @cached_property
    def sessions_by_value(self) -> Statement:
        """``key``, ``indexed_value``, ``after``, ``limit`` → ids of sessions, in order."""
        current = self.tables.session_metadata.table
        query = (
            select(current.c.session_id)
            .where(
                current.c.key == bindparam("key"),
                current.c.indexed_value == bindparam("indexed_value"),
                current.c.session_id > bindparam("after"),
            )
            .order_by(current.c.session_id)
        )
        return self.dialect.compile(query.limit(_LIMIT))

    @cached_property
    def metadata_as_of(self) -> dict[str, Statement]:
        """``stream_id``, ``bound`` → ``key, value``, folded from the log up to there.

        One for each column of the log that the bound may be of.
        """
        log = self.tables.events
        statements: dict[str, Statement] = {}
        for name in ("version", "position", "recorded_at"):
            events = self._session_events(log.c[name] <= bindparam("bound", type_=log.c[name].type))
            fold = rows_of(
                self.tables.session_metadata, self.dialect.relation(events.subquery("events"))
            ).subquery("state")
            statements[name] = self.dialect.compile(select(fold.c.key, fold.c.value))
        return statements

    @cached_property
    def session_events(self) -> Statement:
        """``stream_id``, ``after``, ``limit`` → the events after a version, in order."""
        later = self._session_events(self._later)
        return self.dialect.compile(later.order_by(self.tables.events.c.version).limit(_LIMIT))

    @cached_property
    def session_events_of_key(self) -> Statement:
        """``stream_id``, ``after``, ``limit``, ``key`` → those that changed the key."""
        log = self.tables.events
        later = self._session_events(self._later)
        change = self.dialect.relation(later.subquery("events")).changes()
        versions = select(change.c.version).where(change.c.key == bindparam("key"))
        of_key = later.where(log.c.version.in_(versions))
        return self.dialect.compile(of_key.order_by(log.c.version).limit(_LIMIT))

    @property
    def _later(self) -> ColumnElement[bool]:
        return self.tables.events.c.version > bindparam("after", type_=BigInt)

    def _session_events(self, *conditions: ColumnElement[bool]) -> AnySelect:
        log = self.tables.events
        return select(*(log.c[name] for name in EVENT_COLUMNS)).where(
            log.c.stream_id == bindparam("stream_id"), log.c.stream_type == "session", *conditions
        )

    @cached_property
    def items(self) -> Statement:
        """``session_id`` → ``message_data`` of its items, in order."""
        messages = self.tables.messages
        query = select(messages.c.message_data).where(
            messages.c.session_id == bindparam("session_id")
        )
        return self.dialect.compile(query.order_by(messages.c.created_at, messages.c.id))

    @cached_property
    def last_items(self) -> Statement:
        """``session_id``, ``limit`` → ``message_data, id`` of its last items, latest first."""
        messages = self.tables.messages
        query = (
            select(messages.c.message_data, messages.c.id)
            .where(messages.c.session_id == bindparam("session_id"))
            .order_by(messages.c.created_at.desc(), messages.c.id.desc())
            .limit(_LIMIT)
        )
        return self.dialect.compile(query)
