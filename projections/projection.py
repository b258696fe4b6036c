"""What projections say of themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.relation import AnySelect, Event, Events, Messages


class KnownEvent(NamedTuple):
    """What a projection needs of an event that has not been to the database yet.

    Attributes:
        stream_id: Its stream.
        data: Its payload.
        recorded_at: When, in any form that the table takes.
    """

    stream_id: str
    data: Mapping[str, Any]
    recorded_at: Any


@dataclass(frozen=True)
class Projection:
    """A read model that the database folds: its table, and the one definition of its rows.

    Attributes:
        name: Names the read model, for people and for checkpoints.
        version: Raised whenever ``select`` or ``table`` changes its meaning; the table is then
            built anew beside the old one.
        stream_type: The streams that it follows: ``"session"`` or ``"user"``.
        event_types: The types of the events that can change a row; all others are ignored.
        table: Where the rows are kept.
        select: The fold. From a relation of events it yields one row per primary key which those
            events touched: the table's columns, ``present`` (false: after these events there is no
            such row) and ``restarted`` (true: a row that existed before these events is not the
            one that exists after them, for it was removed in between).
        kept: Columns that a later event does not overwrite, such as ``created_at``.
        by_stream: Each row follows from the events of one stream, so that streams can be folded
            one after the other. If False, they are only ever folded in the order of the log.
        fold: What ``select`` yields for events that remove nothing, in the order of their versions,
            as rows of the table in the order of its key: a shorter way to the same for a writer
            that has the events at hand. None if there is no shorter way.
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
        """The one table."""
        return (self.table,)

    @property
    def overwritten(self) -> list[str]:
        """The columns of a row that later events change."""
        keys = {column.name for column in self.table.primary_key}
        names = [column.name for column in self.table.columns]
        return [name for name in names if name not in keys | self.kept]


Apply: TypeAlias = "Callable[[AsyncConnection, Sequence[Event], Sequence[Table]], Awaitable[None]]"
"""Brings tables from where they are to what they are after some more events.

It is given the connection; the events, in the order of the log, each once; and the tables to write
to, in the order of `AppliedProjection.tables`: while these are built anew, others in their place.

The transaction also moves the checkpoint or, inline, is that of the append, so it neither commits
nor rolls back. A statement whose error it handles belongs in ``connection.begin_nested()``: else
the database may undo all of the transaction, which is a failure of the projection.
"""


@dataclass(frozen=True)
class AppliedProjection:
    """A read model that is plain Python.

    Attributes:
        name: Names the read model, for people and for checkpoints.
        version: Raised whenever ``apply`` or ``tables`` change their meaning.
        stream_type: The streams that it follows: ``"session"`` or ``"user"``.
        event_types: The types of the events that it is given.
        tables: Where it keeps what it makes of them.
        apply: What it does with more events.
    """

    name: str
    version: int
    stream_type: str
    event_types: frozenset[str]
    tables: tuple[Table, ...]
    apply: Apply


AnyProjection: TypeAlias = Projection | AppliedProjection
"""A read model of the log, however it is made."""


@dataclass(frozen=True)
class ItemProjection:
    """A read model of items, whose rows have the ids of the items they come from.

    Attributes:
        name: Names the read model, for people.
        version: Raised whenever ``select`` or ``table`` changes its meaning.
        table: Where the rows are kept.
        select: The fold: from a relation of items it yields the table's rows.
    """

    name: str
    version: int
    table: Table
    select: Callable[[Messages], AnySelect]
