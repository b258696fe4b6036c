"""The base of all commands: a request to append to one stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """The type and data of an event, as a command makes them."""

    type: str
    data: dict[str, Any]


@dataclass(kw_only=True)
class Command(ABC):
    """A request to append to one stream.

    Attributes:
        stream: The stream.
        event_id: The id of the event it becomes.
        may_be_retry: The command may have been carried out before: the caller gave the id, or
            the outcome of an attempt is unknown.
        expected_version: The version that the stream must have; None for any.
        actor: The actor who makes the change.
        context: JSON text of the context.
        access: The principal on whose behalf the call is made.
        companions: Commands to the same stream, which follow this one in the same transaction: all
            of them, or none if this one is rejected.
        owner: The owner of the stream, set when the command is carried out. See
            `StreamHead.user_id`.
        recorded_at: The time of the event, set when the command is carried out.
    """

    stream: StreamKey
    event_id: str
    may_be_retry: bool = False
    expected_version: int | None = None
    actor: str | None = None
    context: str | None = None
    access: Principal = ADMINISTRATOR
    companions: Sequence[Command] = ()
    owner: str | None = field(default=None, init=False)
    recorded_at: datetime | None = field(default=None, init=False)

    creates_session: ClassVar[bool] = False
    reads_state: ClassVar[bool] = True
    """Whether the pending events of the batch must be written before the command."""
    locks_row: ClassVar[bool] = False
    """Whether the command may have to wait for the row of the session or user, too."""
    type: ClassVar[str]

    @abstractmethod
    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Carry out the command, and return what to record; None if there was nothing to do.

        Raises:
            AppendRejected: The command cannot be carried out; nothing was done yet.
        """

    @property
    def begins(self) -> bool:
        """Return whether the command may record the first event of its stream."""
        return False

    def when_invisible(self) -> AppendRejected | None:
        """Return the outcome if the principal cannot see the stream; None: nothing to do."""
        return None

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` is the outcome of an earlier attempt.

        Args:
            recorded: The event that was found under this command's event id.
        """
        if recorded.type != self.type:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """Return about how many bytes the command adds to the parameters of a batch."""
        return 512

    @property
    def group(self) -> tuple[Command, ...]:
        """Return the command and its companions, in their order."""
        return (self, *self.companions)


@dataclass(kw_only=True)
class Append(Command):
    """A command to append an event whose data is known beforehand, such as one of the caller's."""

    fact: EventData
    data_size: int = 0

    reads_state: ClassVar[bool] = False

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return what to record, without reading anything."""
        yield from ()
        return self.fact

    @property
    def begins(self) -> bool:
        """Return True, as the event may be the first one."""
        return True

    def when_invisible(self) -> AppendRejected | None:
        """Return `SessionNotFound`, as there is no stream to append to."""
        return SessionNotFound(self.stream.stream_id)

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` has the same type and data."""
        if recorded.type != self.fact.type or _differ(recorded.data, self.fact.data):
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """Return the size of the data plus an allowance for the row."""
        return self.data_size + 512


def with_companions(commands: Iterable[Command]) -> list[Command]:
    """Return ``commands``, each followed by its companions."""
    return [member for command in commands for member in command.group]


def _differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether ``a`` and ``b`` differ as JSON, where True is not 1."""
    return dump_canonical(a, "data") != dump_canonical(b, "data")
