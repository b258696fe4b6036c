"""The WHERE condition that limits a statement to what a user may see."""

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
    """The filter that limits statements to what a user may see, by the heads of the streams.

    If a session was transferred without its history, the new owner cannot see its past: the events
    before the one that transferred it.

    Attributes:
        streams: The table of heads.
        log: The table of events.
        reach: Which sessions are visible.
    """

    streams: Table
    log: Table
    reach: Visibility

    @property
    def is_limited(self) -> bool:
        """Return whether anything is invisible."""
        return self.reach is not Visibility.ALL

    def of_session(
        self, session_id: ColumnElement[str], user: ColumnElement[str] | None = None
    ) -> list[ColumnElement[bool]]:
        """Return the condition that the session belongs to a user, or may be claimed by the user.

        There is no condition if everything is visible. The owner is looked up by primary key, as a
        scalar: for EXISTS, planners may read a whole table.

        Args:
            session_id: The session.
            user: The user; the parameter ``owner`` if None.
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
        if self.reach is Visibility.OWNED_OR_UNOWNED:
            owner = func.coalesce(owner, user)
        return [owner == user]

    def within(self, query: AnySelect, session_id: ColumnElement[str]) -> AnySelect:
        """Return ``query`` limited to the session of the parameter ``session_id``, if visible."""
        wanted = bindparam("session_id", type_=SessionId)
        return query.where(session_id == wanted, *self.of_session(wanted))

    def of_stream(
        self, stream_type: StreamType, stream_id: ColumnElement[str]
    ) -> list[ColumnElement[bool]]:
        """Return the condition that a stream is visible. Users see the stream with their id."""
        if stream_type == "session":
            return self.of_session(stream_id)
        return [stream_id == _user()] if self.is_limited else []

    def of_events(self, log: Any) -> list[ColumnElement[bool]]:
        """Return the condition that an event of the log is visible.

        Its stream must be visible, and the event must not be from before a transfer without
        history.
        """
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
        """Return the condition that a session's event is not from before its transfer."""
        return self._not_before(log.c.version, log.c.stream_id, "version")

    def since_position(
        self, position: ColumnElement[int], session_id: ColumnElement[str]
    ) -> list[ColumnElement[bool]]:
        """Return the condition that a ``position`` of the log is not from before the transfer."""
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
        """Return the condition that a ``point`` in a session's past is not before its transfer.

        Args:
            session_id: The session.
            column: The column of the log by which the point is given.
            point: The value of that column.
        """
        if not self.is_limited:
            return []
        return [func.coalesce(self._handed_over(session_id, column), point) <= point]

    def _handed_over(self, session_id: ColumnElement[str], column: str) -> ColumnElement[Any]:
        """Return the ``column`` of the first event that the owner sees; NULL if all are visible.

        It is looked up by primary keys, as a scalar, like the owner in `of_session`.
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
