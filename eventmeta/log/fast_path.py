"""The fast path: a batch of unconditional appends as one statement, if the database has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import orjson

from eventmeta.core.events import RecordedEvent
from eventmeta.dialects.statement import Program, Row, Statement, recordset
from eventmeta.log.commands import (
    AddItems,
    Append,
    Command,
    EventData,
    RecordUsage,
    SetMetadata,
    may_add_tools,
    with_companions,
)
from eventmeta.log.fast_path_statement import FastPathStatements
from eventmeta.log.pending_event import Outcome, PendingEvent, event_row, item_rows
from projections import KnownEvent, Projection


def is_unconditional(command: Command) -> bool:
    """Return whether ``command`` can be recorded without reading its stream."""
    return (
        isinstance(command, Append)
        and command.expected_version is None
        and not command.may_be_retry
        and not (isinstance(command, RecordUsage) and command.message)
    )


def statement_for(commands: Sequence[Command], sql: FastPathStatements) -> Statement | None:
    """Return the statement that can append all ``commands``, or None.

    It takes unconditional appends only, and those to one stream must all be for the same user.
    """
    commands = with_companions(commands)
    if not all(map(is_unconditional, commands)):
        return None
    for_users = _for_users(commands)
    if for_users:
        writers = {(command.stream, command.access.user_id) for command in commands}
        if len(writers) > len({stream for stream, _ in writers}):
            return None
    with_items = any(isinstance(command, AddItems) for command in commands)
    with_tools = any(map(may_add_tools, commands))
    return sql.one(
        with_metadata=any(isinstance(command, SetMetadata) for command in commands),
        with_items=with_items,
        with_tools=with_tools,
        for_users=for_users,
    )


def _for_users(commands: Sequence[Command]) -> bool:
    return any(command.access.user_id is not None for command in commands)


def append_in_one_statement(
    commands: Sequence[Append], statement: Statement, metadata: Projection
) -> Program[list[Outcome]]:
    """Record unconditional commands in one statement.

    An event id that is recorded already fails the whole batch. The outcome None means that the
    session does not, or not yet, belong to the user of the command.
    """
    everything = with_companions(commands)
    rows = yield statement(
        events=recordset(_events(everything)),
        items=recordset(item_rows(enumerate(everything))),
        **_columns(everything, metadata),
    )
    recorded = iter(rows)
    left = {row[0] for row in rows}
    outcomes: list[Outcome] = []
    for command in commands:
        own = [next(recorded) for _ in command.group] if command.stream.stream_id in left else ()
        outcomes.append(_recorded(command, own[0]) if own else None)
    return outcomes


def _events(commands: Sequence[Command]) -> list[dict[str, Any]]:
    """Return the known fields of the events, and how many ``later`` ones each stream has."""
    for_users, later = _for_users(commands), Counter(command.stream for command in commands)
    events: list[dict[str, Any]] = []
    for n, command in enumerate(commands):
        later[command.stream] -= 1
        event = event_row(command, cast(Append, command).fact)
        event |= {"n": n, "creates": command.creates_session, "later": later[command.stream]}
        if for_users:
            event["user_id"] = command.access.user_id
        events.append(event)
    return events


def _columns(commands: Sequence[Command], metadata: Projection) -> dict[str, str]:
    """Return the rows of ``metadata`` by column, as JSON, without the times.

    The statement takes the times from the streams.
    """
    assert metadata.fold is not None
    names = (column.name for column in metadata.table.columns)
    rows = metadata.fold(
        KnownEvent(command.stream.stream_id, command.fact.data, None)
        for command in commands
        if isinstance(command, SetMetadata)
    )
    columns = (orjson.dumps(values).decode() for values in zip(*rows, strict=True))
    return dict(zip(names, columns, strict=False))


def _recorded(command: Append, row: Row) -> RecordedEvent:
    _, position, version, recorded_at, data = row
    facts = orjson.loads(data) if isinstance(command, AddItems) else command.fact.data
    draft = PendingEvent(
        command, EventData(command.fact.type, facts), version, recorded_at, position
    )
    return draft.event()
