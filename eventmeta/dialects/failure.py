"""What the errors of drivers mean, by which it is decided what is done about them."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Failure(enum.Enum):
    """What a driver's error means."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    HELD = "a row that is needed is locked by a transaction that stays open"
    DUPLICATE = "a unique key exists already"
    REFUSED = "against a rule of the database's own: a check, a trigger, a missing right"
    ORPHANED = "against a foreign key"
    TABLE_MISSING = "a table does not exist"
    DISCONNECTED = "the connection was lost"
    CANCELLED = "the statement was cancelled by someone else, or by a limit of time"
    OTHER = "anything else"


class Rule(NamedTuple):
    """What a database says of the rule that a statement was against, as far as it does.

    Attributes:
        constraint: The name of the constraint.
        table: The table whose rule it is; of a foreign key, the one that refers to the other.
        refers_to: Of a foreign key, the other table.
    """

    constraint: str | None = None
    table: str | None = None
    refers_to: str | None = None


class RowHeld(Exception):
    """A row that was not to be waited for is locked, where the driver's error does not tell."""
