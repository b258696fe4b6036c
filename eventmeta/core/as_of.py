"""Points in the past: the version of a stream, a position of the log, or a time."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from eventmeta.core.errors import InvalidPoint
from eventmeta.core.events import Position
from eventmeta.core.validation import check_moment


class AsOf(NamedTuple):
    """The end of a part of a stream or of the log: a column of the log and its last value."""

    column: str
    value: int | datetime


def parse_as_of(point: object) -> AsOf:
    """Return ``point`` as the column of the log and the last value that it stands for.

    Raises:
        InvalidPoint: ``point`` is neither a version, a position nor an aware datetime.
    """
    if isinstance(point, datetime):
        return AsOf("recorded_at", check_moment(point))
    if not isinstance(point, int) or isinstance(point, bool) or not 0 <= point < 2**63:
        raise InvalidPoint(
            f"{point!r} is not a point in history: give a version (0, 1, 2 …), a Position "
            "or an aware datetime"
        )
    return AsOf("position" if isinstance(point, Position) else "version", int(point))


def parse_log_as_of(point: object) -> AsOf:
    """Return ``point`` as the end of a part of the whole log; a number is a position.

    Raises:
        InvalidPoint: ``point`` is neither a position nor an aware datetime.
    """
    bound = parse_as_of(point)
    return bound if bound.column == "recorded_at" else AsOf("position", bound.value)
