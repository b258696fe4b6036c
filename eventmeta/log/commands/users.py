"""What may be asked of a user, and of whose a session is."""

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
    """That a session now belongs to ``user_id``, or to nobody any more."""
    return EventData(USER_ASSIGNED, {"user_id": user_id, "previous": previous or None})


@dataclass(kw_only=True)
class CreateSession(Command):
    """Make a session, with its row, that belongs to the user of ``access``, who must be given."""

    creates_session: ClassVar[bool] = True
    looks: ClassVar[bool] = False
    locks_row: ClassVar[bool] = True
    type: ClassVar[str] = USER_ASSIGNED

    @property
    def begins(self) -> bool:
        """The session may be new."""
        return True

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """The claim itself is the event, unless the session is the user's already."""
        if self.owner is None:
            return assignment(self.access.user_id, None)
        session = [{"session_id": self.stream.stream_id}]
        yield sql.create_sessions(sessions=recordset(session))
        return None

    def beyond_reach(self) -> AppendRejected:
        """The id is taken."""
        return SessionNotFound(self.stream.stream_id)

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """It must have been made for the same user."""
        return _unless_assigned_to(self.access.user_id, self, recorded)


@dataclass(kw_only=True)
class TransferSession(Command):
    """Hand a session over to another user, who is created if need be.

    Attributes:
        to_user: Whose it is to be.
        with_history: Whether that user is to see what was before, as far as who gives it does.
    """

    to_user: str
    with_history: bool = False

    type: ClassVar[str] = USER_ASSIGNED
    locks_row: ClassVar[bool] = True

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Only what is one's own can be given away; the administrator gives what there is."""
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
        """Return the version from which who gives it away has seen it; 0: from the first."""
        if self.access.user_id is None:
            return 0
        rows = yield sql.seen_since(session_id=self.stream.stream_id)
        return rows[0][0] if rows else 0

    def beyond_reach(self) -> AppendRejected:
        """It is not there to be given away."""
        return SessionNotFound(self.stream.stream_id)

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """It must have gone to the same user, with or without its history as well."""
        if recorded.data.get("with_history", self.with_history) is not self.with_history:
            return EventIdReused(self.event_id, recorded.type)
        return _unless_assigned_to(self.to_user, self, recorded)

    def has_given_away(self, recorded: RecordedEvent) -> bool:
        """Whether ``recorded`` is why the session is out of reach now."""
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
        """What is known about the user, who is locked."""
        if self.owner is None:
            return {}
        rows = yield sql.user_metadata(user_id=self.stream.stream_id)
        text = rows[0][0] if rows else None  # someone may have removed the row by hand
        document: dict[str, Any] = parse(text) if text else {}
        return document


@dataclass(kw_only=True)
class SetUserMetadata(_UserCommand):
    """Merge metadata into that of a user, who is created if need be.

    Attributes:
        changes: The new values, as the log keeps them.
        max_value_bytes: The largest document, in bytes of JSON.
    """

    changes: list[Change]
    max_value_bytes: int

    type: ClassVar[str] = METADATA_SET

    @property
    def begins(self) -> bool:
        """The user may be new."""
        return True

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Record the document as a whole besides what changes in it."""
        document = yield from self._document(sql)
        document |= {str(key): parse(str(value)) for key, value, *_ in self.changes}
        text = dump_canonical(document, "metadata")
        size = len(text.encode())
        if size > self.max_value_bytes:
            raise ValueTooLarge("metadata", size, self.max_value_bytes)
        return EventData(METADATA_SET, {"changes": self.changes, "metadata": text})

    def beyond_reach(self) -> AppendRejected:
        """One writes about no one else."""
        return UserNotFound(self.stream.stream_id)

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """The very same changes must be recorded."""
        if recorded.type != self.type or recorded.data["changes"] != self.changes:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """The document's, at most, and some."""
        return sum(len(change[1] or "") for change in self.changes) + 512


@dataclass(kw_only=True)
class DeleteUserMetadata(_UserCommand):
    """Remove keys from what is known about a user: the given ones, or all."""

    keys: Sequence[str] | None

    type: ClassVar[str] = METADATA_DELETED

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Name in the event exactly what was there to remove."""
        document = yield from self._document(sql)
        removed = sorted(document if self.keys is None else document.keys() & {*self.keys})
        if not removed:
            return None
        kept = {key: document[key] for key in document.keys() - {*removed}}
        text = dump_canonical(kept, "metadata")
        return EventData(METADATA_DELETED, {"changes": removals(removed), "metadata": text})

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """It must have removed none but the keys asked for."""
        return unless_removed(self.keys, self, recorded)


@dataclass(kw_only=True)
class DeleteUser(_UserCommand):
    """Remove a user. The sessions stay, and nobody but the administrator reaches them."""

    type: ClassVar[str] = USER_DELETED

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Name in the event what was known about the user, and the sessions without an owner."""
        if self.owner is None:
            return None
        document = yield from self._document(sql)
        rows = yield sql.owned_sessions_now(user_id=self.stream.stream_id)
        sessions = sorted(row[0] for row in rows)
        return EventData(
            USER_DELETED, {"changes": removals(sorted(document)), "sessions": sessions}
        )
