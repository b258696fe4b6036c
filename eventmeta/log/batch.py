"""A batch of commands as one transaction, without its I/O.

The batch first locks the heads of all streams, in the order of their keys. From then on versions,
owners and conflicts are known. If the database can append unconditional commands in one statement,
`append_in_one_statement` takes the place of this program.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eventmeta.core.database_errors import DatabaseBusy
from eventmeta.core.errors import AppendRejected, EventMetaError, InvalidInput, VersionConflict
from eventmeta.core.events import RecordedEvent, StreamKey, read_event
from eventmeta.core.validation import new_event_id
from eventmeta.dialects.statement import Program, Row, recordset, steps
from eventmeta.log.batch_items import put_items_last, session_rows, write_items
from eventmeta.log.commands import (
    Append,
    Command,
    EventData,
    RecordUsage,
    TransferSession,
    with_companions,
)
from eventmeta.log.owning import own_heads
from eventmeta.log.pending_event import Outcome, PendingEvent
from eventmeta.log.statements import AppendStatements
from eventmeta.log.stream_head import (
    StreamHead,
    StreamHeads,
    events_before,
    is_held,
    is_visible,
    seen_since,
)
from eventmeta.read_models.fold import can_remove
from eventmeta.read_models.item_changes import follow
from projections import EVENT_COLUMNS, HANDOVER, USER_ASSIGNED


def append_batch(
    commands: Sequence[Command],
    sql: AppendStatements,
    recorded: list[RecordedEvent] | None = None,
) -> Program[list[Outcome]]:
    """Carry out commands of any kind, each as if it were alone.

    Args:
        commands: The commands.
        sql: The statements.
        recorded: Gets every event that the batch records, also those that ownership adds.
    """
    batch = _Batch(sql)
    everything = with_companions(commands)
    batch.heads = yield from own_heads(everything, sql)
    batch.some_held = any(head.held for head in batch.heads.values())
    yield from batch.find_recorded(command for command in everything if command.may_be_retry)
    outcomes: list[PendingEvent | RecordedEvent | EventMetaError | None] = []
    for command in commands:
        take = batch.take_group if command.companions else batch.take
        outcome = yield from take(command)
        outcomes.append(outcome)
    yield from batch.flush()
    yield from batch.save_heads()
    yield from batch.drop_unused()
    if recorded is not None:
        recorded += [draft.event() for draft in batch.written]
    return [item.event() if isinstance(item, PendingEvent) else item for item in outcomes]


@dataclass
class _Batch:
    """The state of a transaction between its queries.

    Attributes:
        sql: The statements.
        heads: The heads of the streams that it may append to.
        some_held: Whether another transaction holds any of the heads.
        recorded: The events that are known by their ids: found in the log, or of this batch.
        pending: The events that are not written yet.
        written: The events that are written.
    """

    sql: AppendStatements
    heads: StreamHeads = field(default_factory=dict[StreamKey, StreamHead])
    some_held: bool = False
    recorded: dict[tuple[StreamKey, str], RecordedEvent | PendingEvent] = field(
        default_factory=dict[tuple[StreamKey, str], RecordedEvent | PendingEvent]
    )
    pending: list[PendingEvent] = field(default_factory=list[PendingEvent])
    written: list[PendingEvent] = field(default_factory=list[PendingEvent])

    def find_recorded(self, commands: Iterable[Command]) -> Program[None]:
        """Look up the events of the commands that have been carried out before."""
        wanted = [
            {**command.stream._asdict(), "event_id": command.event_id} for command in commands
        ]
        if not wanted:
            return
        for row in (yield self.sql.find_events(events=recordset(wanted))):
            event = read_event(row)
            key = StreamKey(event.stream_id, event.stream_type)
            self.recorded[key, event.event_id] = event

    def take_group(
        self, command: Command
    ) -> Program[PendingEvent | RecordedEvent | EventMetaError | None]:
        """Carry out one command and its companions.

        Raises:
            EventMetaError: A companion was refused; roll the transaction back.
        """
        outcome = yield from self.take(command)
        if isinstance(outcome, EventMetaError):
            return outcome
        for companion in command.companions:
            refusal = yield from self.take(companion)
            if isinstance(refusal, EventMetaError):
                raise refusal
        return outcome

    def take(
        self, command: Command
    ) -> Program[PendingEvent | RecordedEvent | EventMetaError | None]:
        """Carry out one command; its event is written with the next flush."""
        head = self.heads[command.stream]
        earlier = self.recorded.get((command.stream, command.event_id))
        if isinstance(earlier, PendingEvent):
            yield from self.flush()  # which completes the event
        event = earlier.event() if isinstance(earlier, PendingEvent) else earlier
        there = is_visible(command, head)
        if there and self.some_held and is_held(command, self.heads):
            return DatabaseBusy("held by a transaction that stays open", held=True)
        if event is not None and (there or _gave_away(command, event)):
            return command.check_retry(event) or earlier
        expected, version = command.expected_version, head.version if there else 0
        if expected is not None and expected != version:
            return VersionConflict(command.stream.stream_id, expected, version)
        if not (there and head.owned):
            return command.when_invisible()
        if command.reads_state:
            yield from self.flush()
        command.owner, command.recorded_at = head.user_id, head.recorded_at
        try:
            fact = yield from command.execute(self.sql.commands)
        except (AppendRejected, InvalidInput) as refusal:
            return refusal
        if fact is None:
            return None
        for stream, before in events_before(command, fact, self.heads):
            self._record(_on_behalf_of(command, stream, before), before)
        return self._record(command, fact)

    def _record(self, command: Command, fact: EventData) -> PendingEvent:
        head = self.heads[command.stream]
        head.record(command.stream, fact)
        draft = PendingEvent(command, fact, head.version, head.recorded_at)
        self.recorded[command.stream, command.event_id] = draft
        self.pending.append(draft)
        return draft

    def flush(self) -> Program[None]:
        """Write the pending events, their items, and the read models."""
        drafts, self.pending = self.pending, []
        if not drafts:
            return
        self.written += drafts
        yield from write_items(drafts, self.sql)
        for draft in drafts:
            if isinstance(draft.command, RecordUsage):
                draft.fact = draft.command.completed
        numbers = recordset([{"n": n} for n in range(1, len(drafts) + 1)])
        positions = yield from steps(self.sql.allocate, numbers=numbers)
        for draft, (position,) in zip(drafts, sorted(map(tuple, positions)), strict=True):
            draft.position = position
        time_text = self.sql.dialect.time_text
        rows = [draft.row(time_text(draft.recorded_at)) for draft in drafts]
        yield self.sql.insert_events(rows)
        yield from self._project(drafts, rows)
        yield from self._assign(drafts)
        yield from put_items_last(drafts, self.sql)
        if self.sql.structure:
            yield from follow(self.sql.structure, [draft.change() for draft in drafts])

    def _assign(self, drafts: Sequence[PendingEvent]) -> Program[None]:
        """Write the new owners to the rows of assigned sessions, now that the users exist.

        This includes the sessions of a deleted user, as SQLite's foreign keys may be turned off.
        """
        assigned = {
            draft.command.stream.stream_id for draft in drafts if draft.fact.type == USER_ASSIGNED
        }
        if not assigned:
            return
        yield from self.save_heads()
        yield from self._hand_over(drafts)
        yield self.sql.commands.assign_sessions(sessions=session_rows(assigned))

    def _hand_over(self, drafts: Sequence[PendingEvent]) -> Program[None]:
        """Write the version from which the new owner of each transferred session sees it."""
        time_text = self.sql.dialect.time_text
        rows = {
            draft.command.stream.stream_id: (since, time_text(draft.recorded_at), None)
            for draft in drafts
            if (since := seen_since(draft.fact, draft.version)) is not None
        }
        if rows:
            yield self.sql.save_streams(
                [(session_id, HANDOVER, *row) for session_id, row in sorted(rows.items())]
            )

    def _project(self, drafts: Sequence[PendingEvent], rows: Sequence[Row]) -> Program[None]:
        time_text = self.sql.dialect.time_text
        for model in self.sql.read_models:
            projection = model.projection
            concerned = [
                draft
                for draft in drafts
                if draft.fact.type in projection.event_types
                and draft.command.stream.stream_type == projection.stream_type
            ]
            if not concerned:
                continue
            own = projection in self.sql.tables.inline
            removing = own or any(can_remove(*draft.fact) for draft in concerned)
            if projection.fold is not None and not removing:
                known = (draft.known(time_text(draft.recorded_at)) for draft in concerned)
                yield model.put(projection.fold(known))
                continue
            values = {"events": _recordset_of(rows), "first": drafts[0].position}
            if removing:
                yield model.remove(**values)
            yield model.write(**values)

    def save_heads(self) -> Program[None]:
        """Write the new versions and owners of the heads."""
        dirty = [(key, head) for key, head in sorted(self.heads.items()) if head.is_dirty]
        time_text = self.sql.dialect.time_text
        if dirty:
            yield self.sql.save_streams(
                [
                    (*key, head.version, time_text(head.recorded_at), head.user_id)
                    for key, head in dirty
                ]
            )
        for _, head in dirty:
            head.is_dirty = False

    def drop_unused(self) -> Program[None]:
        """Delete the heads that this batch added and in whose streams nothing was recorded."""
        unused = [
            key for key, head in sorted(self.heads.items()) if head.added and not head.version
        ]
        if unused:
            yield self.sql.drop_streams(streams=recordset([key._asdict() for key in unused]))


def _gave_away(command: Command, recorded: RecordedEvent) -> bool:
    """Return whether the session is invisible because an earlier attempt transferred it."""
    return isinstance(command, TransferSession) and command.has_given_away(recorded)


def _on_behalf_of(command: Command, stream: StreamKey, fact: EventData) -> Append:
    """Return the command for a ``fact`` that ``command`` records besides its own event."""
    return Append(
        stream=stream,
        event_id=new_event_id(),
        actor=command.actor,
        context=command.context,
        fact=fact,
    )


def _recordset_of(rows: Sequence[Row]) -> str:
    return recordset([dict(zip(EVENT_COLUMNS, row, strict=True)) for row in rows])
