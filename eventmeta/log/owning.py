"""Locking the heads of the streams that a batch may append to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from eventmeta.core.clocks import time_of_next
from eventmeta.core.events import StreamKey
from eventmeta.core.principal import ADMINISTRATOR, Principal
from eventmeta.dialects.statement import Program, recordset, steps
from eventmeta.log.commands import Command, DeleteUser
from eventmeta.log.statements import AppendStatements
from eventmeta.log.stream_head import StreamHead, StreamHeads, reaches_user, users_of


def own_heads(commands: Sequence[Command], sql: AppendStatements) -> Program[StreamHeads]:
    """Lock the heads of all streams that ``commands`` may append to, until the transaction ends.

    The heads of sessions come first. Then come those of users, which are needed only if a session
    gets another owner. This order prevents deadlocks between batches.

    Invisible heads are read and not locked. A missing head is added only if an event may be
    recorded in its stream, so that a command without effect leaves no row behind.
    """
    heads: StreamHeads = {}
    sessions, users = Wanted(), Wanted()
    for command in commands:
        (sessions if command.stream.stream_type == "session" else users).add_command(command)
        if isinstance(command, DeleteUser) and reaches_user(command):
            rows = yield sql.commands.owned_sessions(user_id=command.stream.stream_id)
            for (session_id,) in rows:
                sessions.add(StreamKey(session_id))
    yield from _own(sessions, heads, sql)
    for command in commands:
        head = heads.get(command.stream)
        if head is not None and head.owned and not head.held:
            for user in users_of(command, heads):
                users.add(user, begins=True)
    yield from _own(users, heads, sql)
    for command in commands:
        heads.setdefault(command.stream, StreamHead(0, datetime.now(UTC), None, owned=False))
    return heads


class Wanted:
    """The streams whose heads a batch asks for, each with the principal that asks."""

    def __init__(self) -> None:
        self.rows: dict[tuple[StreamKey, Principal], bool] = {}
        self._begun: dict[StreamKey, bool] = {}

    def add_command(self, command: Command) -> None:
        """Ask for the stream of ``command``; its head is only read if the stream is invisible."""
        stream, access = command.stream, command.access
        if stream.stream_type == "user":
            if not reaches_user(command):
                return
            access = ADMINISTRATOR
        self.rows[stream, access] = self.rows.get((stream, access), False) or command.locks_row
        if command.expected_version in (None, 0) and access.reaches(None):
            self._begun[stream] = self._begun.get(stream, False) or command.begins

    def add(self, stream: StreamKey, *, begins: bool = False) -> None:
        """Ask for a ``stream`` in which a command may record a further event."""
        self.rows[stream, ADMINISTRATOR] = True
        self._begun[stream] = self._begun.get(stream, False) or begins

    def may_begin(self, stream: StreamKey, *, exists: bool) -> bool:
        """Return whether an event may be recorded in a ``stream`` that has none.

        Args:
            stream: The stream.
            exists: The session or user has a row already: upstream's classes make such rows.
        """
        return self._begun.get(stream, False) or (exists and stream in self._begun)

    def recordset(self) -> str:
        """Return the streams as the parameter of the statement, in the order of their keys."""
        return recordset(
            [
                {
                    **stream._asdict(),
                    "user_id": access.user_id,
                    "claims": int(access.claims),
                    "locks_row": int(locks_row),
                }
                for (stream, access), locks_row in sorted(self.rows.items(), key=_by_stream)
            ]
        )


def _own(wanted: Wanted, heads: StreamHeads, sql: AppendStatements) -> Program[None]:
    if not wanted.rows:
        return
    missing: set[StreamKey] = set()
    here = datetime.now(UTC)
    rows = yield from steps(sql.lock_streams, streams=wanted.recordset())
    for stream_id, stream_type, exists, seen, seen_user, version, last, user, held, there in rows:
        key, now = StreamKey(stream_id, stream_type), there or here
        before = heads.get(key)
        if version is not None:
            heads[key] = StreamHead(version, time_of_next(last, now), user)
        elif before is None:
            heads[key] = StreamHead(seen or 0, now, seen_user, owned=False)
            if seen is None and wanted.may_begin(key, exists=bool(exists)):
                missing.add(key)
        heads[key].held = bool(held) or (before is not None and before.held)
    if not missing:
        return
    streams = recordset([key._asdict() for key in sorted(missing)])
    for stream_id, stream_type, version, last, user, now in (
        yield from steps(sql.add_streams, streams=streams)
    ):
        head = StreamHead(version, time_of_next(last, now), user, added=True)
        heads[StreamKey(stream_id, stream_type)] = head


def _by_stream(row: tuple[tuple[StreamKey, Principal], bool]) -> StreamKey:
    return row[0][0]
