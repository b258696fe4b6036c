"""Ownership as a condition in SQL: the one that every statement on behalf of a user carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam, func, or_, select

from eventmeta.access import Reach
from eventmeta.events import StreamType
from projections import AnySelect
from projections.types import SessionId

OWNER = "owner"
"""The parameter, or the column of a record set, that holds the user."""


@dataclass(frozen=True)
class Ownership:
    """What is within the reach of a user, by the heads of the streams."""

    streams: Table
    reach: Reach

    @property
    def is_limited(self) -> bool:
        """Whether anything is out of reach."""
        return self.reach is not Reach.EVERYTHING

    def of_session(
        self, session_id: ColumnElement[str], user: ColumnElement[str] | None = None
    ) -> list[ColumnElement[bool]]:
        """That the session belongs to ``user``, the parameter ``owner`` if None, or may be claimed.

        No condition at all for whoever reaches everything. The owner is looked up by primary key
        as a value, for planners would rather read a whole table than test for existence.
        """
        if not self.is_limited:
            return []
        user = _user() if user is None else user
        heads = self.streams.alias("heads")
        owner: ColumnElement[Any] = (
            select(heads.c.user_id)
            .where(heads.c.stream_id == session_id, heads.c.stream_type == "session")
            .correlate_except(heads)
            .scalar_subquery()
        )
        if self.reach is Reach.UNCLAIMED:
            owner = func.coalesce(owner, user)
        return [owner == user]

    def within(self, query: AnySelect, session_id: ColumnElement[str]) -> AnySelect:
        """``query`` for the session that the parameter ``session_id`` names, if it is in reach."""
        wanted = bindparam("session_id", type_=SessionId)
        return query.where(session_id == wanted, *self.of_session(wanted))

    def of_stream(
        self, stream_type: StreamType, stream_id: ColumnElement[str]
    ) -> list[ColumnElement[bool]]:
        """The same of any stream: a user's own is the one with the user's id."""
        if stream_type == "session":
            return self.of_session(stream_id)
        return [stream_id == _user()] if self.is_limited else []

    def of_events(self, log: Any) -> list[ColumnElement[bool]]:
        """That an event of the log is in a stream within reach."""
        if not self.is_limited:
            return []
        kinds: tuple[StreamType, ...] = ("session", "user")
        return [
            or_(
                *(
                    (log.c.stream_type == kind) & condition
                    for kind in kinds
                    for condition in self.of_stream(kind, log.c.stream_id)
                )
            )
        ]


def _user() -> ColumnElement[str]:
    return bindparam(OWNER, type_=SessionId)
