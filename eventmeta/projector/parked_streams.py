"""Parked streams: a projection has failed at them, and goes on with the other streams.

No event of a parked stream is applied from the failed event on, so that no event is skipped or
applied out of order. `retry` applies the events that wait.
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
        stream_id: The id of the session or the user.
        stream_type: ``"session"`` or ``"user"``.
        position: The position of the first event that is not applied.
        error: The error, as a text.
        attempts: The number of attempts.
        parked_at: The time of the last failure.
    """

    stream_id: str
    stream_type: str
    position: int
    error: str
    attempts: int
    parked_at: datetime


MAX_ERROR = 2_000
"""How many characters of an error are kept."""


def describe(error: BaseException) -> str:
    """Return the text that is kept of ``error``, or of its cause if it has one."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"[:MAX_ERROR]


@dataclass(frozen=True)
class ParkingStatements:
    """The statements for the table of parked streams, compiled once."""

    tables: Tables
    dialect: Dialect

    @cached_property
    def all(self) -> Statement:
        """Select the `ParkedStream`s of a key, in the order of the events that failed."""
        columns = [self._c[name] for name in ParkedStream._fields]
        query = select(*columns).where(self._key)
        return self.dialect.compile(query.order_by(self._c.position))

    @cached_property
    def counts(self) -> Statement:
        """Select each key that has parked streams, and their number."""
        key = [self._c[name] for name in Key._fields]
        return self.dialect.compile(select(*key, func.count()).group_by(*key))

    @cached_property
    def one(self) -> Statement:
        """Select the `ParkedStream` of a key and a stream, if the stream is parked."""
        columns = [self._c[name] for name in ParkedStream._fields]
        return self.dialect.compile(select(*columns).where(self._key, self._stream))

    @cached_property
    def add(self) -> Statement:
        """Insert or update parked streams: the rows of ``streams``."""
        table = self.tables.parked_streams
        columns = list(table.c.keys())
        given = self.dialect.recordset("streams", {name: table.c[name].type for name in columns})
        source = select(*(given.c[name] for name in columns))
        changing = ("position", "error", "attempts", "parked_at")
        return self.dialect.compile(self.dialect.upsert(table, columns, source, changing))

    @cached_property
    def move(self) -> Statement:
        """Set the position of a key's stream to ``new_position``: its next waiting event."""
        position = bindparam("new_position", type_=BigInt)
        table = self.tables.parked_streams
        return self.dialect.compile(
            update(table).where(self._key, self._stream).values(position=position)
        )

    @cached_property
    def free(self) -> Statement:
        """Delete the parked stream of a key, so that the stream is followed again."""
        table = self.tables.parked_streams
        return self.dialect.compile(delete(table).where(self._key, self._stream))

    @cached_property
    def free_all(self) -> Statement:
        """Delete all parked streams of a key."""
        return self.dialect.compile(delete(self.tables.parked_streams).where(self._key))

    @cached_property
    def rename(self) -> Statement:
        """Set the state of a key's parked streams to ``new_state``."""
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
        """Park a stream."""
        row = {
            **stream._asdict(),
            **key._asdict(),
            "parked_at": self.dialect.time_text(stream.parked_at),
        }
        yield self.add(streams=recordset([row]))


def failed_at(event: Any, error: BaseException, attempts: int = 1) -> ParkedStream:
    """Return the parked stream of ``event``, which could not be applied because of ``error``."""
    return ParkedStream(
        event.stream_id,
        event.stream_type,
        int(event.position),
        describe(error),
        attempts,
        datetime.now(UTC),
    )


def stream_of(parked: ParkedStream) -> dict[str, str]:
    """Return the parameters that name the stream."""
    return {"of_stream_id": parked.stream_id, "of_stream_type": parked.stream_type}
