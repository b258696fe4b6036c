"""What may be asked of a session's metadata."""

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
    """Merge metadata into a session, which is created if need be."""

    creates_session: ClassVar[bool] = True
    locks_row: ClassVar[bool] = True

    @classmethod
    def fact_of(cls, changes: list[Change]) -> EventData:
        """What it records."""
        return EventData(METADATA_SET, {"changes": changes})


@dataclass(kw_only=True)
class DeleteMetadata(Command):
    """Remove keys of a session: the given ones, or all."""

    keys: Sequence[str] | None

    type: ClassVar[str] = METADATA_DELETED

    def carry_out(self, sql: CommandStatements) -> Program[EventData | None]:
        """Name in the event exactly what was there to remove."""
        removed = yield from keys_of(sql, self.stream.stream_id, self.keys)
        return EventData(METADATA_DELETED, {"changes": removals(removed)}) if removed else None

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """It must have removed none but the keys asked for."""
        return unless_removed(self.keys, self, recorded)


def keys_of(
    sql: CommandStatements, session_id: str, keys: Sequence[str] | None
) -> Program[list[str]]:
    """Those of ``keys`` that the session has; of all keys if None."""
    if keys is None:
        rows = yield sql.all_keys(session_id=session_id)
    else:
        wanted = recordset([{"key": key} for key in keys])
        rows = yield sql.present_keys(session_id=session_id, keys=wanted)
    return sorted(row[0] for row in rows)


def unless_removed(
    keys: Sequence[str] | None, command: Command, recorded: RecordedEvent
) -> AppendRejected | None:
    """Why ``recorded`` is not the removal of ``keys``, or of all, that ``command`` asks for."""
    removed = {change[0] for change in recorded.data.get("changes", ())}
    if recorded.type != command.type or (keys is not None and not removed <= {*keys}):
        return EventIdReused(command.event_id, recorded.type)
    return None


def removals(keys: Sequence[str]) -> list[Change]:
    """That ``keys`` are removed."""
    return [[key, None] for key in keys]
