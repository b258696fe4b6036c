"""What the errors of drivers mean, by which it is decided what is done about them."""

from __future__ import annotations

import enum


class Failure(enum.Enum):
    """What a driver's error means."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    DUPLICATE = "a unique key exists already"
    REFUSED = "against a rule of the database's own: a check, a trigger"
    ORPHANED = "against a foreign key"
    FORBIDDEN = "the role lacks a right"
    TABLE_MISSING = "a table does not exist"
    DISCONNECTED = "the connection was lost"
    RESOURCE = "no space, memory or connection is left, or the database can only be read"
    CANCELLED = "the statement was cancelled by someone else, or by a limit of time"
    OTHER = "anything else"


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
"""Failures that come again however often the statement is repeated.

All others are of the database's state, and pass with that.
"""
