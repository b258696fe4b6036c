"""What the errors of drivers mean, by which it is decided what is done about them."""

from __future__ import annotations

import enum


class Failure(enum.Enum):
    """What a driver's error means."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    DUPLICATE = "a unique key exists already"
    TABLE_MISSING = "a table, or a column of it, does not exist"
    DISCONNECTED = "the connection was lost"
    CANCELLED = "the statement was cancelled by someone else, or by a limit of time"
    OTHER = "anything else"
