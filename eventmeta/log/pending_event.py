"""Pending events: events that a command makes and that are not written yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from eventmeta.core.errors import EventMetaError
from eventmeta.core.events import Position, RecordedEvent
from eventmeta.log.commands import AddItems, Command, EventData, may_add_tools
from eventmeta.read_models.item_changes import ItemChange
from projections import KnownEvent

Outcome = RecordedEvent | EventMetaError | None
"""The event; the error because of which there is none; or None if there was nothing to do."""


@dataclass
class PendingEvent:
    """An event that may still lack its position and the ids of its items."""

    command: Command
    fact: EventData
    version: int
    recorded_at: datetime
    position: int = 0

    def change(self) -> ItemChange:
        """Return the change of items that the event records, once the event is complete."""
        command = self.command
        return ItemChange(
            command.stream.stream_id,
            self.fact.type,
            self.fact.data,
            command.context,
            command.items if isinstance(command, AddItems) else (),
            may_add_tools(command),
        )

    def row(self, recorded_at: str) -> tuple[Any, ...]:
        """Return the event as a row of the log, once the event is complete."""
        command = self.command
        return (
            self.position,
            command.stream.stream_type,
            command.stream.stream_id,
            self.version,
            command.event_id,
            self.fact.type,
            orjson.dumps(self.fact.data).decode(),
            command.actor,
            command.context,
            recorded_at,
        )

    def known(self, recorded_at: str) -> KnownEvent:
        """Return the event as a projection's Python fold takes it."""
        return KnownEvent(self.command.stream.stream_id, self.fact.data, recorded_at)

    def event(self) -> RecordedEvent:
        """Return the recorded event, once the event is complete."""
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


def event_row(command: Command, fact: EventData) -> dict[str, Any]:
    """Return the fields of an event that are known before its stream is read."""
    return {
        "stream_type": command.stream.stream_type,
        "stream_id": command.stream.stream_id,
        "event_id": command.event_id,
        "type": fact.type,
        "data": orjson.dumps(fact.data).decode(),
        "actor": command.actor,
        "context": command.context,
    }


def item_rows(commands: Iterable[tuple[int, Command]]) -> list[dict[str, Any]]:
    """Return the items of all commands, numbered as ``n``, each with its command's number."""
    items = [
        {"event": number, "session_id": command.stream.stream_id, "message_data": text}
        for number, command in commands
        if isinstance(command, AddItems)
        for text in command.items
    ]
    return [{**item, "n": n} for n, item in enumerate(items)]
