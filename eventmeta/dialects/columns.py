"""What the columns of existing tables are, and whether they hold exactly what the store writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, DateTime, Integer, String, Table, Text
from sqlalchemy.types import BigInteger

from eventmeta.dialects.statement import Row
from projections.types import UtcDateTime

ID_CHARACTERS = 255
"""What a column of ids must hold, where it has a length."""


class FoundColumn(NamedTuple):
    """A column of a table that exists.

    Attributes:
        relation: The table, as the database spells its name.
        kind: What it is: ``table``, if it is one that can be used.
        name: The column.
        type: As the database spells it.
        nullable: It takes NULL.
        has_default: It may be left out.
        computed: The database computes it, and takes no value for it.
        unique: No two rows have the same value in it.
        numbered: The database draws a number for it.
        collation: What tells its texts apart, where that matters.
        foreign_key: The name of its constraint, where the database has one.
    """

    relation: str
    kind: str
    name: str
    type: str
    nullable: bool
    has_default: bool
    computed: bool
    unique: bool
    numbered: bool
    collation: str | None
    foreign_key: str | None


class Mend(NamedTuple):
    """SQL that makes a column what it must be.

    Attributes:
        alter: The statements.
        before: What must come before those of any column.
        after: What must come after those of all columns.
        widens: It loses nothing whatever the rows are, so `create_tables` does it.
    """

    alter: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    widens: bool = False


class Fault(NamedTuple):
    """Why a column cannot be used as it is.

    Attributes:
        is_: What it is.
        needed: What it must be.
        mend: How to make it so, if SQL can.
    """

    is_: str
    needed: str
    mend: Mend = Mend(())


class ColumnDialect(ABC):
    """What one kind of database says of its columns."""

    branches_table: str = ""
    """A table of upstream's that tells which branch of a conversation an item belongs to."""

    @abstractmethod
    def describe_columns(self, relations: Iterable[str]) -> str:
        """Return one query for the columns of ``relations`` that exist.

        It sees all of them with no more rights than those to read and write rows.
        """

    def found_columns(self, rows: Sequence[Row]) -> list[FoundColumn]:
        """Return what the rows of `describe_columns` say."""
        return [FoundColumn(*row) for row in rows]

    @abstractmethod
    def check_column(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        """Return why the values of ``column`` would not come back from ``found`` as they were."""

    @abstractmethod
    def drop_not_null(self, column: Column[Any], found: FoundColumn) -> Mend:
        """Return what lets ``found`` be NULL."""

    def follow_ids(self, tables: Iterable[Table], messages: Table, found: FoundColumn) -> None:
        """Define the columns that hold ids of ``messages`` as wide as these are."""
        if "big" not in found.type.lower():
            return
        for table in tables:
            for column in table.columns:
                if holds_item_id(column, messages):
                    column.type = BigInteger()


def holds_item_id(column: Column[Any], messages: Table) -> bool:
    """Return whether ``column``, of a table of items, holds ids of ``messages``."""
    ids = ("raw_event_id", "parent_raw_event_id", "output_raw_event_id")
    named = column.name == "id" or column.name in ids
    keys = column.table.foreign_keys
    return named and any(key.column is messages.c.id for key in keys)


def is_unlimited_text(column: Column[Any]) -> bool:
    """Return whether ``column`` holds texts of any length."""
    return isinstance(column.type, Text)


def characters(column: Column[Any]) -> int | None:
    """Return how many characters ``column`` must hold; None if it is no text with a limit."""
    if not isinstance(column.type, String) or isinstance(column.type, Text):
        return None
    return column.type.length or ID_CHARACTERS


def is_integer(column: Column[Any]) -> bool:
    """Return whether ``column`` holds whole numbers."""
    return isinstance(column.type, Integer)


def is_exact_time(column: Column[Any]) -> bool:
    """Return whether ``column`` holds times of ours, with microseconds."""
    return isinstance(column.type, UtcDateTime)


def is_time(column: Column[Any]) -> bool:
    """Return whether ``column`` holds times."""
    return isinstance(column.type, UtcDateTime | DateTime)
