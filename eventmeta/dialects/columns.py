"""The columns of existing tables, and checks that they hold exactly what the store writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, DateTime, Integer, String, Table, Text
from sqlalchemy.types import BigInteger

from eventmeta.dialects.statement import Row
from projections.types import UtcDateTime

ID_CHARACTERS = 255
"""The characters that a column of ids must hold, if its length is limited."""


class FoundColumn(NamedTuple):
    """A column of a table that exists.

    Attributes:
        relation: The table, as the database spells its name.
        kind: The kind of relation: ``table`` if the store can use it.
        name: The column's name.
        type: The type, as the database spells it.
        nullable: Whether it takes NULL.
        has_default: Whether an INSERT may leave it out.
        computed: Whether the database computes it, and takes no value for it.
        unique: Whether no two rows have the same value in it.
        numbered: Whether the database draws a number for it.
        collation: The rule by which its texts are compared, if that matters.
        foreign_key: The name of its foreign key, if there is one.
        default: The rule by which the database fills it, if that matters.
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
    default: str | None


class Mend(NamedTuple):
    """SQL that changes a column into what it must be.

    Attributes:
        alter: The statements.
        before: Statements that must come before those of any column.
        after: Statements that must come after those of all columns.
        widens: Whether the change keeps all values of all rows, so that `create_tables` makes it.
    """

    alter: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    widens: bool = False


class Fault(NamedTuple):
    """The reason why a column cannot be used as it is.

    Attributes:
        is_: Its present type or collation.
        needed: The type or collation that it must have.
        mend: The SQL that changes it, if SQL can.
    """

    is_: str
    needed: str
    mend: Mend = Mend(())


class ColumnDialect(ABC):
    """The columns of one kind of database."""

    branches_table: str = ""
    """Upstream's table that tells to which branch of a conversation an item belongs."""

    @abstractmethod
    def describe_columns(self, relations: Iterable[str]) -> str:
        """Return one query for the columns of ``relations`` that exist.

        The query sees all of them with no more rights than to read and write rows.
        """

    def found_columns(self, rows: Sequence[Row]) -> list[FoundColumn]:
        """Return the rows of `describe_columns` as columns."""
        return [FoundColumn(*row) for row in rows]

    @abstractmethod
    def check_column(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        """Return why ``found`` may not hold the values of ``column`` exactly; None if it does."""

    def check_order(self, column: Column[Any], found: FoundColumn) -> Fault | None:
        """Return why ``found``, the id or time of items, may not keep them in order.

        Return None if it does.
        """
        return None

    @abstractmethod
    def drop_not_null(self, column: Column[Any], found: FoundColumn) -> Mend:
        """Return the SQL that lets ``found`` be NULL."""

    def follow_ids(self, tables: Iterable[Table], messages: Table, found: FoundColumn) -> None:
        """Give the columns that hold ids of ``messages`` the width of ``found``."""
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
    """Return the number of characters ``column`` must hold; None if it is not a limited text."""
    if not isinstance(column.type, String) or isinstance(column.type, Text):
        return None
    return column.type.length or ID_CHARACTERS


def is_integer(column: Column[Any]) -> bool:
    """Return whether ``column`` holds whole numbers."""
    return isinstance(column.type, Integer)


def is_exact_time(column: Column[Any]) -> bool:
    """Return whether ``column`` holds the store's own times, with microseconds."""
    return isinstance(column.type, UtcDateTime)


def is_time(column: Column[Any]) -> bool:
    """Return whether ``column`` holds times."""
    return isinstance(column.type, UtcDateTime | DateTime)
