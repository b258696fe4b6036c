"""The statements of the hot reads, compiled once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Integer, String, and_, bindparam, select
from sqlalchemy.types import TypeEngine

from eventmeta.dialects import Dialect
from eventmeta.dialects.statement import Statement
from eventmeta.reader import Lookup
from eventmeta.tables import Tables
from projections import AnySelect
from projections.types import SessionId


@dataclass(frozen=True)
class Queries:
    """What sessions and stores read all the time."""

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
        return self.dialect.compile(self._sessions_by_value().limit(bindparam("limit")))

    @cached_property
    def all_sessions_by_value(self) -> Statement:
        """``key``, ``indexed_value``, ``after`` → ids of sessions, in order."""
        return self.dialect.compile(self._sessions_by_value())

    def _sessions_by_value(self) -> AnySelect:
        current = self.tables.session_metadata.table
        return (
            select(current.c.session_id)
            .where(
                current.c.key == bindparam("key"),
                current.c.indexed_value == bindparam("indexed_value"),
                current.c.session_id > bindparam("after"),
            )
            .order_by(current.c.session_id)
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
            .limit(bindparam("limit"))
        )
        return self.dialect.compile(query)
