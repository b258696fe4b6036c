"""Commands to a session's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from eventmeta.core.canonical_json import Change
from eventmeta.core.errors import AppendRejected, EventIdReused
from eventmeta.core.events import METADATA_DELETED, METADATA_SET, RecordedEvent
from eventmeta.dialects.statement import Program, recordset
from eventmeta.log.commands.base import Append, Command, EventData
from eventmeta.log.commands.statements import CommandStatements


@dataclass(kw_only=True)
class SetMetadata(Append):
    """A command to merge metadata into a session, which is created if it does not exist."""

    creates_session: ClassVar[bool] = True
    locks_row: ClassVar[bool] = True

    @classmethod
    def fact_of(cls, changes: list[Change]) -> EventData:
        """Return the event data for ``changes``."""
        return EventData(METADATA_SET, {"changes": changes})


@dataclass(kw_only=True)
class DeleteMetadata(Command):
    """A command to remove keys from a session's metadata: the given ones, or all if None."""

    keys: Sequence[str] | None

    type: ClassVar[str] = METADATA_DELETED

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Return an event that names exactly the existing keys among those to remove."""
        removed = yield from keys_of(sql, self.stream.stream_id, self.keys)
        return EventData(METADATA_DELETED, {"changes": removals(removed)}) if removed else None

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error if ``recorded`` removed other keys than those asked for."""
        return unless_removed(self.keys, self, recorded)


def keys_of(
    sql: CommandStatements, session_id: str, keys: Sequence[str] | None
) -> Program[list[str]]:
    """Return those of ``keys`` that the session has; all of its keys if None."""
    if keys is None:
        rows = yield sql.all_keys(session_id=session_id)
    else:
        wanted = recordset([{"key": key} for key in keys])
        rows = yield sql.present_keys(session_id=session_id, keys=wanted)
    return sorted(row[0] for row in rows)


def unless_removed(
    keys: Sequence[str] | None, command: Command, recorded: RecordedEvent
) -> AppendRejected | None:
    """Return an error unless ``recorded`` removes ``keys``, or all, as ``command`` asks for."""
    removed = {change[0] for change in recorded.data.get("changes", ())}
    if recorded.type != command.type or (keys is not None and not removed <= {*keys}):
        return EventIdReused(command.event_id, recorded.type)
    return None


def removals(keys: Sequence[str]) -> list[Change]:
    """Return the changes that remove ``keys``."""
    return [[key, None] for key in keys]
