"""What the errors of drivers mean, by which it is decided what is done about them."""

from __future__ import annotations

import enum


class Failure(enum.Enum):
    """What a driver's error means."""

    CONFLICT = "in conflict with another writer; the transaction can be repeated"
    DUPLICATE = "a unique key exists already"
    TABLE_MISSING = "a table does not exist"
    DISCONNECTED = "the connection was lost, or none could be made"
    NOT_LET_IN = "the server or the file refuses connections, and will go on doing so"
    NO_CONNECTION_LEFT = "the server or the pool has no connection left to give"
    TIMED_OUT = "a limit of time that is set for the driver was over before the answer came"
    CANCELLED = "the statement was cancelled by someone else, or by a limit of time"
    OTHER = "anything else"
