"""What any command is: a request to append to one stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

from eventmeta.core.canonical_json import dump_canonical
from eventmeta.core.errors import AppendRejected, EventIdReused, SessionNotFound
from eventmeta.core.events import RecordedEvent, StreamKey
from eventmeta.core.principal import ADMINISTRATOR, Principal
from eventmeta.dialects.statement import Program
from eventmeta.log.commands.statements import CommandStatements


class EventData(NamedTuple):
    """What a command has to record."""

    type: str
    data: dict[str, Any]


@dataclass(kw_only=True)
class Command:
    """A request to append to one stream.

    Attributes:
        stream: The stream.
        event_id: The id of the event it becomes.
        may_be_recorded: It may have been carried out before: the caller gave the id, or the outcome
            of an attempt is unknown.
        expected_version: The version the stream must be at.
        actor: Who asks.
        context: JSON text of the context.
        access: On whose behalf.
        companions: Commands to the same stream, which follow it in the same transaction: all of
            them, or none if it is rejected.
        owner: Whose the stream is, told when the command is carried out. See `StreamHead.user_id`.
        recorded_at: When its event is recorded, told likewise.
    """

    stream: StreamKey
    event_id: str
    may_be_recorded: bool = False
    expected_version: int | None = None
    actor: str | None = None
    context: str | None = None
    access: Principal = ADMINISTRATOR
    companions: Sequence[Command] = ()
    owner: str | None = field(default=None, init=False)
    recorded_at: datetime | None = field(default=None, init=False)

    creates_session: ClassVar[bool] = False
    looks: ClassVar[bool] = True
    """Whether what was recorded before it must be written first."""
    locks_row: ClassVar[bool] = False
    """Whether it may have to wait for the row of the session or user, besides the head."""
    type: ClassVar[str]

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Do what there is to do, and say what to record.

        Raises:
            AppendRejected: It cannot be; nothing was done yet.
        """
        raise NotImplementedError

    @property
    def begins(self) -> bool:
        """Whether it records something where there is nothing yet."""
        return False

    def beyond_reach(self) -> AppendRejected | None:
        """What becomes of it where the session is not there for whoever asks: nothing to do."""
        return None

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Why ``recorded``, found under this command's event id, is not its earlier outcome."""
        if recorded.type != self.type:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """About how many bytes it adds to the parameters of a batch."""
        return 512

    @property
    def group(self) -> tuple[Command, ...]:
        """Itself and its companions, in their order."""
        return (self, *self.companions)


@dataclass(kw_only=True)
class Append(Command):
    """Append what is known beforehand: an event of the caller's own making, for example."""

    fact: EventData
    data_size: int = 0

    looks: ClassVar[bool] = False

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Record it."""
        yield from ()
        return self.fact

    @property
    def begins(self) -> bool:
        """An event may be the first one."""
        return True

    def beyond_reach(self) -> AppendRejected | None:
        """There is nothing to append to."""
        return SessionNotFound(self.stream.stream_id)

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """The very same facts must be recorded."""
        if recorded.type != self.fact.type or _differ(recorded.data, self.fact.data):
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """The data's, and some."""
        return self.data_size + 512


def with_companions(commands: Iterable[Command]) -> list[Command]:
    """Return ``commands``, each followed by its companions."""
    return [member for command in commands for member in command.group]


def _differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """As JSON, where True is not 1."""
    return dump_canonical(a, "data") != dump_canonical(b, "data")
