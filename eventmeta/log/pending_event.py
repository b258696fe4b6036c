"""Events on their way into the log."""

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
"""The event; why there is none; or None, where there was nothing to do."""


@dataclass
class PendingEvent:
    """An event that may still lack its position, and the ids of its items."""

    command: Command
    fact: EventData
    version: int
    recorded_at: datetime
    position: int = 0

    def change(self) -> ItemChange:
        """What it says of items, once it is complete."""
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
        """The event as a row of the log, once it is complete."""
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
        """The event as a projection may fold it."""
        return KnownEvent(self.command.stream.stream_id, self.fact.data, recorded_at)

    def event(self) -> RecordedEvent:
        """The event, once it is complete."""
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
    """What is known of an event before its stream is."""
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
    """The items of all commands, numbered through, each with the number of its command."""
    items = [
        {"event": number, "session_id": command.stream.stream_id, "message_data": text}
        for number, command in commands
        if isinstance(command, AddItems)
        for text in command.items
    ]
    return [{**item, "n": n} for n, item in enumerate(items)]
