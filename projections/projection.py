"""The definition of a projection: its table, and how the table is made of events or items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.relation import AnySelect, Event, Events, Messages


class KnownEvent(NamedTuple):
    """The parts of an event that a projection folds before the event has been in the database.

    Attributes:
        stream_id: Its stream.
        data: Its payload.
        recorded_at: Its time, in any form that the table takes.
    """

    stream_id: str
    data: Mapping[str, Any]
    recorded_at: Any


@dataclass(frozen=True)
class Projection:
    """A read model that the database folds: its table, and the only definition of its rows.

    Attributes:
        name: The name of the read model, for people and for checkpoints.
        version: A number that is raised whenever ``select`` or ``table`` changes its meaning; the
            table is then rebuilt beside the old one.
        stream_type: The type of the streams that it follows: ``"session"`` or ``"user"``.
        event_types: The types of the events that can change a row; all others are ignored.
        table: The table that holds the rows.
        select: The fold. From a relation of events it yields one row for each primary key that
            those events touched: the table's columns, ``present`` (false: after these events there
            is no such row) and ``restarted`` (true: the row was removed in between, so that a row
            from before these events is not the one that exists after them).
        kept: Columns that a later event does not overwrite, such as ``created_at``.
        by_stream: Whether each row follows from the events of one stream, so that streams can be
            folded one after the other. If False, they are only folded in the order of the log.
        fold: A shorter way to the result of ``select`` for a writer that has the events in memory.
            It takes events that remove nothing, in the order of their versions, and returns rows of
            the table in the order of its key. None if there is no shorter way.
    """

    name: str
    version: int
    stream_type: str
    event_types: frozenset[str]
    table: Table
    select: Callable[[Events], AnySelect]
    kept: frozenset[str] = frozenset()
    by_stream: bool = True
    fold: Callable[[Iterable[KnownEvent]], list[tuple[Any, ...]]] | None = None

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the projection's only table, in a tuple."""
        return (self.table,)

    @property
    def overwritten(self) -> list[str]:
        """Return the columns of a row that later events change."""
        keys = {column.name for column in self.table.primary_key}
        names = [column.name for column in self.table.columns]
        return [name for name in names if name not in keys | self.kept]


Apply: TypeAlias = "Callable[[AsyncConnection, Sequence[Event], Sequence[Table]], Awaitable[None]]"
"""A function that brings tables up to date with some more events.

Its arguments are the connection; the events, in the order of the log, each once; and the tables to
write to, in the order of `AppliedProjection.tables`. During a rebuild, these are other tables in
their place.

The transaction also moves the checkpoint or, if the projection is inline, is that of the append. So
the function must neither commit nor roll back. A statement whose error it handles belongs in
``connection.begin_nested()``: otherwise the database may undo all of the transaction, which is a
failure of the projection.
"""


@dataclass(frozen=True)
class AppliedProjection:
    """A read model in plain Python.

    Attributes:
        name: The name of the read model, for people and for checkpoints.
        version: A number that is raised whenever ``apply`` or ``tables`` change their meaning.
        stream_type: The type of the streams that it follows: ``"session"`` or ``"user"``.
        event_types: The types of the events that it is given.
        tables: The tables that it writes to.
        apply: The function that brings the tables up to date with more events.
    """

    name: str
    version: int
    stream_type: str
    event_types: frozenset[str]
    tables: tuple[Table, ...]
    apply: Apply


AnyProjection: TypeAlias = Projection | AppliedProjection
"""A read model of the log, either folded by the database or written in plain Python."""


@dataclass(frozen=True)
class ItemProjection:
    """A read model of items, whose rows have the ids of the items they come from.

    Attributes:
        name: The name of the read model, for people.
        version: A number that is raised whenever ``select`` or ``table`` changes its meaning.
        table: The table that holds the rows.
        select: The fold: from a relation of items it yields the table's rows.
    """

    name: str
    version: int
    table: Table
    select: Callable[[Messages], AnySelect]
