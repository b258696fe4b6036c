"""The heads of the streams that a batch owns, and what follows from whose they are."""

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
        version: Of its last event.
        recorded_at: When its next event is recorded: see `eventmeta.clocks`.
        user_id: Of a session, the owner: None if it never had one, ``NOBODY`` if that one was
            deleted. Of a user, the user's own id while there is such a user.
        moved: Whether it is yet to be written.
        owned: Whether it is this transaction's, until its end. What is out of reach is not, nor
            what is missing, unless something is to be recorded there.
        held: Whether it is an open transaction's of somebody else, so that this one passes it over.
        added: Whether this transaction has made it.
    """

    version: int
    recorded_at: datetime
    user_id: str | None
    moved: bool = False
    owned: bool = True
    held: bool = False
    added: bool = False

    def record(self, stream: StreamKey, fact: EventData) -> None:
        """Go on to the version of an event that holds ``fact``."""
        self.version += 1
        self.moved = True
        if stream.stream_type == "user":
            self.user_id = None if fact.type == USER_DELETED else stream.stream_id
        elif fact.type == USER_ASSIGNED:
            self.user_id = fact.data["user_id"] or NOBODY


StreamHeads = dict[StreamKey, StreamHead]


def is_visible(command: Command, head: StreamHead) -> bool:
    """Whether whoever is behind ``command`` reaches its stream."""
    if command.stream.stream_type == "user":
        return reaches_user(command)
    return command.access.reaches(head.user_id)


def reaches_user(command: Command) -> bool:
    """Whether the stream of a user is within reach of ``command``: nobody else's is."""
    return command.access.user_id in (None, command.stream.stream_id)


def is_held(command: Command, heads: StreamHeads) -> bool:
    """Whether something that ``command`` may write to is held; then all after it waits as well."""
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
    """What is to be recorded before ``fact``, the event of ``command``, by the ``heads`` as of now.

    Whoever gets a session is created first, if need be, and a session that is claimed is assigned
    first. The sessions of a user who goes are assigned to nobody.

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
    """Return from which version on the new owner sees a session, by the ``fact`` at ``version``.

    None where it says nothing of that, as a claim does, and nothing changes. 0 is all of it.
    """
    if "with_history" not in fact.data:
        return None
    since: int = fact.data.get("since", version)
    return since


def user_stream(user_id: str) -> StreamKey:
    """The stream of a user."""
    return StreamKey(user_id, "user")


def _claimant(command: Command, heads: StreamHeads) -> str | None:
    """The user whose a session becomes when ``command`` records something in it."""
    access = command.access
    if not access.claims or command.stream.stream_type != "session":
        return None
    return access.user_id if heads[command.stream].user_id is None else None
