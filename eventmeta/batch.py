"""A batch of commands as one transaction, without its I/O.

Two programs do the same. `append_at_once` is one statement, where the database has one and every
command is plain. `append_in_steps` is for everything else: it owns the heads of all streams first,
in the order of their keys, so that from then on versions and conflicts are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from eventmeta.commands import AddItems, Append, Command, Fact, StreamKey
from eventmeta.dialects.statement import Program, Row, Statement, recordset, steps
from eventmeta.errors import AppendRejected, VersionConflict
from eventmeta.events import Position, RecordedEvent, read_event
from eventmeta.projector import can_remove
from eventmeta.write_statements import WriteStatements

Outcome = RecordedEvent | AppendRejected | None
"""The event; why there is none; or None, where there was nothing to do."""


def is_plain(command: Command) -> bool:
    """Whether nothing need be known of the stream to record ``command``."""
    return (
        isinstance(command, Append)
        and command.expected_version is None
        and not command.may_be_recorded
    )


def append_at_once(commands: Sequence[Append], statement: Statement) -> Program[list[Outcome]]:
    """Record plain commands. An event id that is recorded already fails the whole batch."""
    rows = yield statement(
        events=recordset(
            [
                {**_event_row(command, command.fact), "n": n, "creates": command.creates_session}
                for n, command in enumerate(commands)
            ]
        ),
        items=recordset(_item_rows(enumerate(commands))),
    )
    return [_recorded(command, row) for command, row in zip(commands, rows, strict=True)]


def _recorded(command: Append, row: Row) -> RecordedEvent:
    position, version, recorded_at, data = row
    facts = orjson.loads(data) if isinstance(command, AddItems) else command.fact.data
    draft = _Draft(command, Fact(command.fact.type, facts), version, recorded_at, position)
    return draft.event()


def append_in_steps(commands: Sequence[Command], sql: WriteStatements) -> Program[list[Outcome]]:
    """Carry out commands of any kind, each as if it were alone."""
    batch = _Batch(sql)
    yield from batch.lock({command.stream for command in commands})
    yield from batch.find_recorded(command for command in commands if command.may_be_recorded)
    outcomes: list[_Draft | AppendRejected | RecordedEvent | None] = []
    for command in commands:
        outcome = yield from batch.take(command)
        outcomes.append(outcome)
    yield from batch.flush()
    yield from batch.save_heads()
    return [item.event() if isinstance(item, _Draft) else item for item in outcomes]


@dataclass
class _Head:
    version: int
    recorded_at: datetime
    moved: bool = False


@dataclass
class _Draft:
    """An event that may still lack its position, and the ids of its items."""

    command: Command
    fact: Fact
    version: int
    recorded_at: datetime
    position: int = 0

    def event(self) -> RecordedEvent:
        command = self.command
        return RecordedEvent(
            Position(self.position),
            command.stream.stream_type,
            command.stream.stream_id,
            self.version,
            command.event_id,
            self.fact.type,
            self.fact.data,
            command.actor,
            orjson.loads(command.context) if command.context else {},
            self.recorded_at,
        )


@dataclass
class _Batch:
    """The state of a transaction between its queries."""

    sql: WriteStatements
    heads: dict[StreamKey, _Head] = field(default_factory=dict[StreamKey, _Head])
    recorded: dict[tuple[StreamKey, str], RecordedEvent | _Draft] = field(
        default_factory=dict[tuple[StreamKey, str], RecordedEvent | _Draft]
    )
    pending: list[_Draft] = field(default_factory=list[_Draft])

    def lock(self, streams: Iterable[StreamKey]) -> Program[None]:
        """Own the heads. No event is recorded before its stream's last one, whatever the clock."""
        rows = yield from steps(
            self.sql.lock_streams,
            streams=recordset([key._asdict() for key in sorted(streams)]),
            now=datetime.now(UTC),
        )
        for stream_id, stream_type, version, recorded_at, now in rows:
            at = max(now, recorded_at) if recorded_at else now
            self.heads[StreamKey(stream_id, stream_type)] = _Head(version or 0, at)

    def find_recorded(self, commands: Iterable[Command]) -> Program[None]:
        """Learn which of the commands have been carried out before."""
        wanted = [
            {**command.stream._asdict(), "event_id": command.event_id} for command in commands
        ]
        if not wanted:
            return
        for row in (yield self.sql.find_events(events=recordset(wanted))):
            event = read_event(row)
            key = StreamKey(event.stream_id, event.stream_type)  # type: ignore[arg-type]
            self.recorded[key, event.event_id] = event

    def take(self, command: Command) -> Program[_Draft | AppendRejected | RecordedEvent | None]:
        """Carry out one command; its event is written with the next flush."""
        earlier = self.recorded.get((command.stream, command.event_id))
        if earlier is not None:
            if isinstance(earlier, _Draft):
                yield from self.flush()  # so that it is complete
            event = earlier.event() if isinstance(earlier, _Draft) else earlier
            return command.repetition(event) or earlier
        head = self.heads[command.stream]
        expected = command.expected_version
        if expected is not None and expected != head.version:
            return VersionConflict(command.stream.stream_id, expected, head.version)
        if not isinstance(command, Append):
            yield from self.flush()
        fact = yield from command.carry_out(self.sql)
        if fact is None:
            return None
        head.version += 1
        head.moved = True
        draft = _Draft(command, fact, head.version, head.recorded_at)
        self.recorded[command.stream, command.event_id] = draft
        self.pending.append(draft)
        return draft

    def flush(self) -> Program[None]:
        """Write the pending events, their items, and what follows from them."""
        drafts, self.pending = self.pending, []
        if not drafts:
            return
        yield from self._write_items(drafts)
        numbers = recordset([{"n": n} for n in range(1, len(drafts) + 1)])
        positions = yield from steps(self.sql.allocate, numbers=numbers)
        for draft, (position,) in zip(drafts, sorted(map(tuple, positions)), strict=True):
            draft.position = position
        time_text = self.sql.dialect.time_text
        rows = recordset(
            [
                {
                    **_event_row(draft.command, draft.fact),
                    "position": draft.position,
                    "version": draft.version,
                    "recorded_at": time_text(draft.recorded_at),
                }
                for draft in drafts
            ]
        )
        yield self.sql.insert_events(events=rows)
        yield from self._project(drafts, rows)

    def _write_items(self, drafts: Sequence[_Draft]) -> Program[None]:
        adding = [(draft, draft.command) for draft in drafts if isinstance(draft.command, AddItems)]
        touched = {command.stream.stream_id for _, command in adding}
        created = {
            draft.command.stream.stream_id for draft in drafts if draft.command.creates_session
        } - touched
        if created:
            yield self.sql.create_sessions(sessions=_session_rows(created))
        if not touched:
            return
        yield self.sql.touch_sessions(sessions=_session_rows(touched))
        items = _item_rows(enumerate(command for _, command in adding))
        times = [self.sql.dialect.time_text(draft.recorded_at) for draft, _ in adding]
        for item in items:
            item["recorded_at"] = times[item["event"]]
        rows = yield from steps(self.sql.insert_items, items=recordset(items))
        ids: dict[str, list[int]] = {}
        for session_id, item_id in sorted(map(tuple, rows), reverse=True):
            ids.setdefault(session_id, []).append(item_id)
        for draft, command in adding:
            own = ids[command.stream.stream_id]
            item_ids = [own.pop() for _ in command.items]
            draft.fact = Fact(draft.fact.type, {"item_ids": item_ids})

    def _project(self, drafts: Sequence[_Draft], rows: str) -> Program[None]:
        first = drafts[0].position
        for projection, remove, write in self.sql.project:
            concerned = [d.fact.data for d in drafts if d.fact.type in projection.event_types]
            if any(map(can_remove, concerned)):
                yield remove(events=rows, first=first)
            if concerned:
                yield write(events=rows, first=first)

    def save_heads(self) -> Program[None]:
        """Move the heads to their new versions."""
        rows = [
            {
                **key._asdict(),
                "version": head.version,
                "recorded_at": self.sql.dialect.time_text(head.recorded_at),
            }
            for key, head in sorted(self.heads.items())
            if head.moved
        ]
        if rows:
            yield self.sql.save_streams(streams=recordset(rows))


def _event_row(command: Command, fact: Fact) -> dict[str, Any]:
    return {
        "stream_type": command.stream.stream_type,
        "stream_id": command.stream.stream_id,
        "event_id": command.event_id,
        "type": fact.type,
        "data": orjson.dumps(fact.data).decode(),
        "actor": command.actor,
        "context": command.context,
    }


def _item_rows(commands: Iterable[tuple[int, Command]]) -> list[dict[str, Any]]:
    """The items of all commands, numbered through, each with the number of its command."""
    items = [
        {"event": number, "session_id": command.stream.stream_id, "message_data": text}
        for number, command in commands
        if isinstance(command, AddItems)
        for text in command.items
    ]
    return [{**item, "n": n} for n, item in enumerate(items)]


def _session_rows(session_ids: Iterable[str]) -> str:
    return recordset([{"session_id": session_id} for session_id in sorted(session_ids)])
