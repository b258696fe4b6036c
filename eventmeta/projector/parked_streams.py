"""Streams at which a projection has failed, set aside so that the others can go on.

From the event that failed on, nothing of such a stream is applied, so nothing is skipped or comes
out of order. `retry` applies what has gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, delete, func, select, update

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Program, Statement, recordset
from eventmeta.projector.checkpoints import Key, is_of_key
from eventmeta.tables.tables import Tables
from projections.types import BigInt


class ParkedStream(NamedTuple):
    """A stream that a projection could not follow.

    Attributes:
        stream_id: The session or the user.
        stream_type: ``"session"`` or ``"user"``.
        position: Of the first event that is not applied.
        error: What was raised, as a text.
        attempts: How often it was tried.
        parked_at: When it failed last.
    """

    stream_id: str
    stream_type: str
    position: int
    error: str
    attempts: int
    parked_at: datetime


MAX_ERROR = 2_000
"""Characters of an error that are kept."""


def describe(error: BaseException) -> str:
    """``error`` as it is kept, with what caused it."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"[:MAX_ERROR]


@dataclass(frozen=True)
class ParkingStatements:
    """What is asked of the table of parked streams, compiled once."""

    tables: Tables
    dialect: Dialect

    @cached_property
    def all(self) -> Statement:
        """The key → its `ParkedStream`s, the one that failed first comes first."""
        columns = [self._c[name] for name in ParkedStream._fields]
        query = select(*columns).where(self._key)
        return self.dialect.compile(query.order_by(self._c.position))

    @cached_property
    def counts(self) -> Statement:
        """For each key that has parked streams: the key, and how many they are."""
        key = [self._c[name] for name in Key._fields]
        return self.dialect.compile(select(*key, func.count()).group_by(*key))

    @cached_property
    def one(self) -> Statement:
        """The key, ``stream_id``, ``stream_type`` → its `ParkedStream`, if it is parked."""
        columns = [self._c[name] for name in ParkedStream._fields]
        return self.dialect.compile(select(*columns).where(self._key, self._stream))

    @cached_property
    def add(self) -> Statement:
        """``streams``, each a row: parked, or parked again."""
        table = self.tables.parked_streams
        columns = list(table.c.keys())
        given = self.dialect.recordset("streams", {name: table.c[name].type for name in columns})
        source = select(*(given.c[name] for name in columns))
        changing = ("position", "error", "attempts", "parked_at")
        return self.dialect.compile(self.dialect.upsert(table, columns, source, changing))

    @cached_property
    def move(self) -> Statement:
        """The key, the stream, ``new_position``: it is applied up to there."""
        position = bindparam("new_position", type_=BigInt)
        table = self.tables.parked_streams
        return self.dialect.compile(
            update(table).where(self._key, self._stream).values(position=position)
        )

    @cached_property
    def free(self) -> Statement:
        """The key, the stream: it can be followed again."""
        table = self.tables.parked_streams
        return self.dialect.compile(delete(table).where(self._key, self._stream))

    @cached_property
    def free_all(self) -> Statement:
        """The key: all its streams."""
        return self.dialect.compile(delete(self.tables.parked_streams).where(self._key))

    @cached_property
    def rename(self) -> Statement:
        """The key, ``new_state``: they are of another state from now on."""
        table = self.tables.parked_streams
        state = bindparam("new_state", type_=self._c.state.type)
        return self.dialect.compile(update(table).where(self._key).values(state=state))

    @property
    def _c(self) -> Any:
        return self.tables.parked_streams.c

    @property
    def _key(self) -> ColumnElement[bool]:
        return is_of_key(self.tables.parked_streams)

    @property
    def _stream(self) -> ColumnElement[bool]:
        return and_(
            self._c.stream_id == bindparam("of_stream_id", type_=self._c.stream_id.type),
            self._c.stream_type == bindparam("of_stream_type", type_=self._c.stream_type.type),
        )

    # --- Programs -------------------------------------------------------------------------------

    def park(self, key: Key, stream: ParkedStream) -> Program[None]:
        """Set a stream aside."""
        row = {
            **stream._asdict(),
            **key._asdict(),
            "parked_at": self.dialect.time_text(stream.parked_at),
        }
        yield self.add(streams=recordset([row]))


def failed_at(event: Any, error: BaseException, attempts: int = 1) -> ParkedStream:
    """The stream of ``event``, which could not be applied for ``error``."""
    return ParkedStream(
        event.stream_id,
        event.stream_type,
        int(event.position),
        describe(error),
        attempts,
        datetime.now(UTC),
    )


def stream_of(parked: ParkedStream) -> dict[str, str]:
    """The parameters that name the stream."""
    return {"of_stream_id": parked.stream_id, "of_stream_type": parked.stream_type}
