"""Locked stream heads, and the events that ownership adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from eventmeta.core.database_errors import DatabaseBusy
from eventmeta.core.events import StreamKey
from eventmeta.log.commands import Command, DeleteUser, EventData, TransferSession, assignment
from projections import NOBODY, USER_ASSIGNED, USER_CREATED, USER_DELETED


@dataclass
class StreamHead:
    """The last state of a stream.

    Attributes:
        version: The version of its last event.
        recorded_at: The time of its next event: see `eventmeta.core.clocks`.
        user_id: Of a session, the owner: None if it never had one, ``NOBODY`` if the owner was
            deleted. Of a user, the user's own id while the user exists.
        is_dirty: Whether the head has changed and is not written yet.
        owned: Whether this transaction has locked the head. Invisible heads are not locked, nor are
            missing ones unless an event may be recorded in their streams.
        held: Whether another open transaction has locked the head, so that this one skips it.
        added: Whether this transaction has added the head.
    """

    version: int
    recorded_at: datetime
    user_id: str | None
    is_dirty: bool = False
    owned: bool = True
    held: bool = False
    added: bool = False

    def record(self, stream: StreamKey, fact: EventData) -> None:
        """Advance the head by an event that holds ``fact``."""
        self.version += 1
        self.is_dirty = True
        if stream.stream_type == "user":
            self.user_id = None if fact.type == USER_DELETED else stream.stream_id
        elif fact.type == USER_ASSIGNED:
            self.user_id = fact.data["user_id"] or NOBODY


StreamHeads = dict[StreamKey, StreamHead]


def is_visible(command: Command, head: StreamHead) -> bool:
    """Return whether the principal of ``command`` can see its stream."""
    if command.stream.stream_type == "user":
        return reaches_user(command)
    return command.access.reaches(head.user_id)


def reaches_user(command: Command) -> bool:
    """Return whether ``command`` can see the stream of the user: users see only their own."""
    return command.access.user_id in (None, command.stream.stream_id)


def is_held(command: Command, heads: StreamHeads) -> bool:
    """Return whether another transaction holds a head that ``command`` may write to.

    If so, the command's own head is marked as held, so that later commands to it wait as well.
    """
    needed = [heads[command.stream]]
    if isinstance(command, DeleteUser):
        needed += (head for head in heads.values() if head.user_id == command.stream.stream_id)
    needed += (heads[user] for user in users_of(command, heads) if user in heads)
    if not any(head.held for head in needed):
        return False
    heads[command.stream].held = True
    return True


def users_of(command: Command, heads: StreamHeads) -> Sequence[StreamKey]:
    """Return the users in whose streams ``command`` may record something besides its own event."""
    if isinstance(command, TransferSession):
        return (user_stream(command.to_user),)
    claimant = _claimant(command, heads)
    return () if claimant is None else (user_stream(claimant),)


def events_before(
    command: Command, fact: EventData, heads: StreamHeads
) -> Iterator[tuple[StreamKey, EventData]]:
    """Yield the events to record before ``fact``, the event of ``command``.

    They depend on the current state of ``heads``. The new owner of a session is created first if
    there is no such user. A claimed session is assigned first. The sessions of a deleted user are
    assigned to nobody.

    Raises:
        DatabaseBusy: A session was assigned before it could be locked; the batch can be repeated.
    """
    stream = command.stream
    if isinstance(command, DeleteUser):
        for session_id in fact.data["sessions"]:
            if StreamKey(session_id) not in heads:
                raise DatabaseBusy("a session was assigned to the user who is being deleted")
            yield StreamKey(session_id), assignment(None, stream.stream_id)
        return
    claimant = None
    if fact.type == USER_ASSIGNED:
        user_id = fact.data["user_id"]
    elif stream.stream_type == "user":
        user_id = stream.stream_id
    else:
        user_id = claimant = _claimant(command, heads)
    if user_id is not None and heads[user_stream(user_id)].user_id is None:
        yield user_stream(user_id), EventData(USER_CREATED, {})
    if claimant is not None:
        yield stream, assignment(claimant, None)


def seen_since(fact: EventData, version: int) -> int | None:
    """Return the version from which the new owner sees a session, by the ``fact`` at ``version``.

    0 means the whole session. None means that the fact does not change it, as with a claim.
    """
    if "with_history" not in fact.data:
        return None
    since: int = fact.data.get("since", version)
    return since


def user_stream(user_id: str) -> StreamKey:
    """Return the stream of a user."""
    return StreamKey(user_id, "user")


def _claimant(command: Command, heads: StreamHeads) -> str | None:
    """Return the user who claims the session by this command, if any."""
    access = command.access
    if not access.claims or command.stream.stream_type != "session":
        return None
    return access.user_id if heads[command.stream].user_id is None else None
