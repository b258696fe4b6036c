"""Commands to users, and to the owner of a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eventmeta.core.canonical_json import Change, dump_canonical, parse
from eventmeta.core.errors import (
    AppendRejected,
    EventIdReused,
    SessionNotFound,
    UserNotFound,
    ValueTooLarge,
)
from eventmeta.core.events import METADATA_DELETED, METADATA_SET, RecordedEvent
from eventmeta.dialects.statement import Program, recordset
from eventmeta.log.commands.base import Command, EventData
from eventmeta.log.commands.metadata import removals, unless_removed
from eventmeta.log.commands.statements import CommandStatements
from projections import USER_ASSIGNED, USER_DELETED


def assignment(user_id: str | None, previous: str | None) -> EventData:
    """Return the event data that assigns a session to ``user_id``, or to nobody if None."""
    return EventData(USER_ASSIGNED, {"user_id": user_id, "previous": previous or None})


@dataclass(kw_only=True)
class CreateSession(Command):
    """A command to create a session with its row. The principal must be a user, who owns it."""

    creates_session: ClassVar[bool] = True
    reads_state: ClassVar[bool] = False
    locks_row: ClassVar[bool] = True
    type: ClassVar[str] = USER_ASSIGNED

    @property
    def begins(self) -> bool:
        """Return True, as the session may be new."""
        return True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return the claim as the event. If the user owns the session already, add its row only."""
        if self.owner is None:
            return assignment(self.access.user_id, None)
        session = [{"session_id": self.stream.stream_id}]
        yield sql.create_sessions(sessions=recordset(session))
        return None

    def when_invisible(self) -> AppendRejected:
        """Return `SessionNotFound`, as the id is taken."""
        return SessionNotFound(self.stream.stream_id)

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` assigned the session to the same user."""
        return _unless_assigned_to(self.access.user_id, self, recorded)


@dataclass(kw_only=True)
class TransferSession(Command):
    """A command to transfer a session to another user, who is created if there is no such user.

    Attributes:
        to_user: The new owner.
        with_history: Whether the new owner sees the session's past. The new owner never sees more
            of it than the previous owner who transfers the session.
    """

    to_user: str
    with_history: bool = False

    type: ClassVar[str] = USER_ASSIGNED
    locks_row: ClassVar[bool] = True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return the assignment as the event; None if the user owns the session already.

        A user may transfer only their own sessions. The administrator may transfer any session.

        Raises:
            SessionNotFound: The session does not exist, or nobody owns it and a user asks.
        """
        if self.owner is None:
            exists = yield sql.lock_session(session_id=self.stream.stream_id)
            if not exists or self.access.user_id is not None:
                raise SessionNotFound(self.stream.stream_id)
        if self.owner == self.to_user:
            return None
        fact = assignment(self.to_user, self.owner)
        fact.data["with_history"] = self.with_history
        if self.with_history:
            fact.data["since"] = yield from self._seen_since(sql)
        return fact

    def _seen_since(self, sql: CommandStatements) -> Program[int]:
        """Return the version from which the transferring user sees the session; 0: all of it."""
        if self.access.user_id is None:
            return 0
        rows = yield sql.seen_since(session_id=self.stream.stream_id)
        return rows[0][0] if rows else 0

    def when_invisible(self) -> AppendRejected:
        """Return `SessionNotFound`, as there is no session to transfer."""
        return SessionNotFound(self.stream.stream_id)

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` has the same new owner and ``with_history``."""
        if recorded.data.get("with_history", self.with_history) is not self.with_history:
            return EventIdReused(self.event_id, recorded.type)
        return _unless_assigned_to(self.to_user, self, recorded)

    def has_given_away(self, recorded: RecordedEvent) -> bool:
        """Return whether the user of this command lost the session by ``recorded``."""
        return recorded.type == self.type and recorded.data["previous"] == self.access.user_id


def _unless_assigned_to(
    user_id: str | None, command: Command, recorded: RecordedEvent
) -> AppendRejected | None:
    if recorded.type != USER_ASSIGNED or recorded.data["user_id"] != user_id:
        return EventIdReused(command.event_id, recorded.type)
    return None


class _UserCommand(Command):
    """A command to the stream of a user."""

    locks_row: ClassVar[bool] = True

    def _document(self, sql: CommandStatements) -> Program[dict[str, Any]]:
        """Lock the user's row, and return the document of the user's metadata."""
        if self.owner is None:
            return {}
        rows = yield sql.user_metadata(user_id=self.stream.stream_id)
        text = rows[0][0] if rows else None  # the row may have been deleted by hand
        document: dict[str, Any] = parse(text) if text else {}
        return document


@dataclass(kw_only=True)
class SetUserMetadata(_UserCommand):
    """A command to merge metadata into that of a user, who is created if there is no such user.

    Attributes:
        changes: The new values, as the log keeps them.
        max_value_bytes: The largest size of the document, in bytes of JSON.
    """

    changes: list[Change]
    max_value_bytes: int

    type: ClassVar[str] = METADATA_SET

    @property
    def begins(self) -> bool:
        """Return True, as the user may be new."""
        return True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return the changes and the whole new document as the event.

        Raises:
            ValueTooLarge: The new document is larger than allowed.
        """
        document = yield from self._document(sql)
        document |= {str(key): parse(str(value)) for key, value, *_ in self.changes}
        text = dump_canonical(document, "metadata")
        size = len(text.encode())
        if size > self.max_value_bytes:
            raise ValueTooLarge("metadata", size, self.max_value_bytes)
        return EventData(METADATA_SET, {"changes": self.changes, "metadata": text})

    def when_invisible(self) -> AppendRejected:
        """Return `UserNotFound`: a user may write only their own metadata."""
        return UserNotFound(self.stream.stream_id)

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` has the same changes."""
        if recorded.type != self.type or recorded.data["changes"] != self.changes:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """Return the size of the new values plus an allowance for the row."""
        return sum(len(change[1] or "") for change in self.changes) + 512


@dataclass(kw_only=True)
class DeleteUserMetadata(_UserCommand):
    """A command to remove keys from a user's metadata: the given ones, or all if None."""

    keys: Sequence[str] | None

    type: ClassVar[str] = METADATA_DELETED

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return an event that names exactly the existing keys among those to remove."""
        document = yield from self._document(sql)
        removed = sorted(document if self.keys is None else document.keys() & {*self.keys})
        if not removed:
            return None
        kept = {key: document[key] for key in document.keys() - {*removed}}
        text = dump_canonical(kept, "metadata")
        return EventData(METADATA_DELETED, {"changes": removals(removed), "metadata": text})

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error if ``recorded`` removed other keys than those asked for."""
        return unless_removed(self.keys, self, recorded)


@dataclass(kw_only=True)
class DeleteUser(_UserCommand):
    """A command to delete a user. The sessions stay, and only the administrator can see them."""

    type: ClassVar[str] = USER_DELETED

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return an event that names the user's metadata keys and sessions.

        These sessions have no owner from then on.
        """
        if self.owner is None:
            return None
        document = yield from self._document(sql)
        rows = yield sql.owned_sessions_now(user_id=self.stream.stream_id)
        sessions = sorted(row[0] for row in rows)
        return EventData(
            USER_DELETED, {"changes": removals(sorted(document)), "sessions": sessions}
        )
