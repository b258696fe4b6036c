"""Ownership as a condition in SQL: the one that every statement on behalf of a user carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, bindparam, func, literal_column, or_, select

from eventmeta.core.events import StreamType
from eventmeta.core.principal import Visibility
from projections import HANDOVER, AnySelect
from projections.types import SessionId

OWNER = "owner"
"""The parameter, or the column of a record set, that holds the user."""


@dataclass(frozen=True)
class OwnerFilter:
    """What is within the reach of a user, by the heads of the streams.

    Of a session that was handed over without its history, the past is out of reach: what the log
    has of it before the event that handed it over.
    """

    streams: Table
    log: Table
    reach: Visibility

    @property
    def is_limited(self) -> bool:
        """Whether anything is out of reach."""
        return self.reach is not Visibility.EVERYTHING

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
        if self.reach is Visibility.UNCLAIMED:
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
        """That an event of the log is in a stream within reach, and not of its past before that."""
        if not self.is_limited:
            return []
        kinds: tuple[StreamType, ...] = ("session", "user")
        return [
            or_(
                *(
                    and_(log.c.stream_type == kind, *self.of_stream(kind, log.c.stream_id), *since)
                    for kind, since in zip(kinds, (self.since(log), ()), strict=True)
                )
            )
        ]

    def since(self, log: Any) -> list[ColumnElement[bool]]:
        """That an event of a session, in the log, is not from before it was handed over."""
        return self._not_before(log.c.version, log.c.stream_id, "version")

    def since_position(
        self, position: ColumnElement[int], session_id: ColumnElement[str]
    ) -> list[ColumnElement[bool]]:
        """The same of what was recorded at a ``position`` of the log."""
        return self._not_before(position, session_id, "position")

    def _not_before(
        self, place: ColumnElement[int], session_id: ColumnElement[str], column: str
    ) -> list[ColumnElement[bool]]:
        if not self.is_limited:
            return []
        return [place >= func.coalesce(self._handed_over(session_id, column), _BEGINNING)]

    def at(
        self, session_id: ColumnElement[str], column: str, point: ColumnElement[Any]
    ) -> list[ColumnElement[bool]]:
        """That ``point`` in a session's past, by a ``column`` of the log, is not before that."""
        if not self.is_limited:
            return []
        return [func.coalesce(self._handed_over(session_id, column), point) <= point]

    def _handed_over(self, session_id: ColumnElement[str], column: str) -> ColumnElement[Any]:
        """Return the ``column`` of the event from which on a session is seen, by primary keys.

        NULL if all of it is. It is a value, as the owner is in `of_session`.
        """
        heads, handed = self.streams.alias("handovers"), self.log.alias("handed")
        of_session = (heads.c.stream_id == session_id, heads.c.stream_type == HANDOVER)
        if column == "version":
            found = select(heads.c.version).where(*of_session).correlate_except(heads)
        else:
            same = (
                handed.c.stream_id == heads.c.stream_id,
                handed.c.stream_type == "session",
                handed.c.version == heads.c.version,
            )
            found = select(handed.c[column]).where(*of_session, *same)
            found = found.correlate_except(heads, handed)
        return found.scalar_subquery()


_BEGINNING: ColumnElement[int] = literal_column("0")


def _user() -> ColumnElement[str]:
    return bindparam(OWNER, type_=SessionId)
