"""What a projection says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Table

from projections.relation import AnySelect, Events


@dataclass(frozen=True)
class Projection:
    """A read model: its table, and the one definition of its rows.

    Attributes:
        name: Names the read model, for people and for checkpoints.
        version: Raised whenever ``select`` or ``table`` changes its meaning.
        event_types: The types of the events that can change a row; all others are ignored.
        table: Where the rows are kept.
        select: The fold. From a relation of events it yields one row per primary key which those
            events touched: the table's columns, ``present`` (false: after these events there is no
            such row) and ``restarted`` (true: a row that existed before these events is not the
            one that exists after them, for it was removed in between).
        kept: Columns that a later event does not overwrite, such as ``created_at``.
    """

    name: str
    version: int
    event_types: frozenset[str]
    table: Table
    select: Callable[[Events], AnySelect]
    kept: frozenset[str] = frozenset()
