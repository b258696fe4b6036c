"""The meanings of drivers' errors, which decide how each failure is handled."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Failure(enum.Enum):
    """The meaning of a driver's error."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    HELD = "a row that is needed is locked by a transaction that stays open"
    DUPLICATE = "a unique key exists already"
    REFUSED = "a rule of the database forbids the change: a constraint or a trigger"
    ORPHANED = "a foreign key forbids the change"
    FORBIDDEN = "the role lacks a right"
    TABLE_MISSING = "a table, or a column of it, does not exist"
    DISCONNECTED = "the connection was lost, or none could be made"
    NOT_LET_IN = "the server or the file refuses connections, and will go on doing so"
    NO_CONNECTION_LEFT = "the server or the pool has no connection left to give"
    TIMED_OUT = "a limit of time that is set for the driver was over before the answer came"
    RESOURCE = "no space or memory is left, or the database can only be read"
    CANCELLED = "the statement was cancelled by someone else, or by a limit of time"
    OTHER = "anything else"


class Rule(NamedTuple):
    """The rule of a database that forbids a change.

    Attributes:
        constraint: The name of the constraint, if the database names it.
        table: The table that has the rule, if the database names it; for a foreign key, the table
            that refers to the other.
        refers_to: For a foreign key, the other table.
    """

    constraint: str | None = None
    table: str | None = None
    refers_to: str | None = None


class RowHeld(Exception):
    """A row is locked that was not to be waited for; the driver's error alone does not tell."""


OF_THE_STATEMENT = frozenset(
    {
        Failure.DUPLICATE,
        Failure.REFUSED,
        Failure.ORPHANED,
        Failure.FORBIDDEN,
        Failure.TABLE_MISSING,
        Failure.OTHER,
    }
)
"""Failures that occur each time the statement is repeated.

All other failures depend on the state of the database, and pass with it.
"""
