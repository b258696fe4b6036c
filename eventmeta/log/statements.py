"""The statements that append a batch, each written once and compiled for the store's database.

A statement takes a batch as one JSON parameter, so the number of rows is not limited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Executable,
    Integer,
    String,
    and_,
    select,
)
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import PutRows, Statement
from eventmeta.log.commands.statements import CommandStatements
from eventmeta.log.fast_path_statement import FastPathStatements
from eventmeta.read_models.fold import asked_for, delete_rows, upsert_rows
from eventmeta.read_models.item_statements import ItemStatements
from eventmeta.tables.tables import Tables
from projections import EVENT_COLUMNS, Projection
from projections.types import SessionId

_KEY: Mapping[str, TypeEngine[Any]] = {"stream_id": SessionId, "stream_type": String(16)}
_WANTED: Mapping[str, TypeEngine[Any]] = {
    **_KEY,
    "user_id": SessionId,
    "claims": Integer(),
    "locks_row": Integer(),
}
_NUMBER: Mapping[str, TypeEngine[Any]] = {"n": Integer()}


@dataclass(frozen=True)
class ReadModel:
    """The statements that update one read model with the events being appended.

    Attributes:
        projection: The definition of the read model.
        remove: Deletes rows: ``events``, ``first``.
        write: Writes rows: ``events``, ``first``.
        put: Writes the rows that the projection's ``fold`` returns.
    """

    projection: Projection
    remove: Statement
    write: Statement
    put: PutRows


@dataclass(frozen=True)
class AppendStatements:
    """The statements of a batch: heads, events and read models. Compiled at first use.

    Each property that is a statement says what the statement does, then its parameters → the
    columns of its rows.

    Attributes:
        tables: The store's tables.
        dialect: Its database.
        waits: Whether the statements wait for heads that an open transaction holds. Otherwise they
            skip these heads, and rows of sessions and users that an open transaction holds.
        waits_within: Whether commands wait for other rows that an open transaction holds, such as
            those of items. Otherwise they fail at once if the database supports that: a command
            that waits there would itself lock neighbouring rows.
    """

    tables: Tables
    dialect: Dialect
    waits: bool = True
    waits_within: bool = True

    @cached_property
    def commands(self) -> CommandStatements:
        """Return the statements that single commands run."""
        return CommandStatements(self.tables, self.dialect, self.waits_within)

    # --- Streams --------------------------------------------------------------------------------

    @cached_property
    def lock_streams(self) -> list[Statement]:
        """Read heads, and lock the visible ones: ``streams``, ``now`` → heads. See `Dialect`."""
        keys = self.dialect.recordset("streams", _WANTED)
        return self._compile([self.dialect.lock_streams(self.tables, keys, waits=self.waits)])

    @cached_property
    def add_streams(self) -> list[Statement]:
        """Add the missing heads of ``streams``, and lock them: ``streams`` → the new heads."""
        keys = self.dialect.recordset("streams", _KEY)
        return self._compile(self.dialect.add_streams(self.tables.streams, keys))

    @cached_property
    def drop_streams(self) -> Statement:
        """Delete the heads of ``streams`` in which nothing was recorded after all."""
        streams, keys = self.tables.streams, self.dialect.recordset("streams", _KEY)
        listed = select(keys.c.stream_id, keys.c.stream_type).subquery("unused")
        return self._one(self.dialect.delete_matching(streams, listed))

    @cached_property
    def save_streams(self) -> PutRows:
        """Write heads with their new ``version``, ``recorded_at`` and ``user_id``."""
        update = ("version", "recorded_at", "user_id")
        return self.dialect.put_rows(self.tables.streams, update)

    @cached_property
    def find_events(self) -> Statement:
        """Select recorded events: ``events`` (stream and event id) → `EVENT_COLUMNS`."""
        log = self.tables.events
        wanted = self.dialect.recordset("events", {**_KEY, "event_id": log.c.event_id.type})
        same = and_(*(log.c[name] == wanted.c[name] for name in wanted.c.keys()))  # noqa: SIM118
        found = self.dialect.look_up(wanted, [log.c[name] for name in EVENT_COLUMNS], same)
        return self._one(self.dialect.current(found, waits=self.waits_within))

    # --- Events ---------------------------------------------------------------------------------

    @cached_property
    def allocate(self) -> list[Statement]:
        """Draw positions: ``numbers`` (n = 1, 2, …) → a position for each."""
        numbers = self.dialect.recordset("numbers", _NUMBER)
        return self._compile(self.dialect.allocate(self.tables, numbers))

    @cached_property
    def insert_events(self) -> PutRows:
        """Insert complete events."""
        return self.dialect.put_rows(self.tables.events)

    @cached_property
    def read_models(self) -> list[ReadModel]:
        """Return the statements of each read model."""
        log = self.tables.events
        given = self.dialect.recordset("events", {name: log.c[name].type for name in EVENT_COLUMNS})
        events = self.dialect.relation(self.dialect.appended(self.tables, given))
        return [
            ReadModel(
                projection,
                self._one(delete_rows(projection, self.dialect, asked)),
                self._one(upsert_rows(projection, self.dialect, asked)),
                self.dialect.put_rows(projection.table, projection.overwritten),
            )
            for projection, asked in asked_for(self.tables, events)
        ]

    @cached_property
    def structure(self) -> ItemStatements | None:
        """Return the statements that follow a change of items; None without structured tables."""
        conversation, tool_calls = self.tables.conversation, self.tables.tool_calls
        if conversation is None or tool_calls is None:
            return None
        return ItemStatements(self.tables, conversation, tool_calls, self.dialect)

    @cached_property
    def plain(self) -> FastPathStatements:
        """Return the statements of the fast path, for batches of unconditional appends."""
        return FastPathStatements(self.tables, self.dialect, self.structure)

    def _one(self, executable: Executable) -> Statement:
        return self.dialect.compile(executable)

    def _compile(self, executables: Sequence[Executable]) -> list[Statement]:
        return [self.dialect.compile(executable) for executable in executables]
