"""Names that callers give: checked before any I/O, the same for every database."""

from __future__ import annotations

import os
import re
import time
import uuid

from eventmeta.codec import text_problem
from eventmeta.errors import InvalidIdentifier, InvalidInput

MAX_BYTES = 255
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")


def check_session_id(value: object) -> str:
    """``value``, if it can be a session's id."""
    return _check_text("session id", value)


def check_actor(value: object) -> str:
    """``value``, if it can name an actor."""
    return _check_text("actor", value)


def check_table_name(value: object) -> str:
    """``value``, if it can name a table on every database."""
    if not isinstance(value, str) or not _TABLE_NAME.fullmatch(value):
        raise InvalidIdentifier(
            "table name",
            value,
            "is not usable: take up to 63 ASCII letters, digits and underscores, no digit first",
        )
    return value


def check_event_type(value: object) -> str:
    """``value``, if it can be the type of an event."""
    if not isinstance(value, str) or not _EVENT_TYPE.fullmatch(value):
        raise InvalidIdentifier(
            "event type",
            value,
            "is not usable: take up to 64 lower-case letters, digits, dots and underscores",
        )
    return value


def check_event_id(value: object) -> str:
    """``value`` as a canonical UUID string."""
    if isinstance(value, uuid.UUID):
        return str(value)
    try:
        return str(uuid.UUID(value if isinstance(value, str) else ""))
    except ValueError:
        raise InvalidIdentifier(
            "event id", value, "is not a UUID; make one with eventmeta.new_event_id()"
        ) from None


def new_event_id() -> str:
    """A new UUIDv7: 48 bits of Unix milliseconds, then randomness (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    version_and_variant = 0x7 << 76 | 0x2 << 62
    bits = random & ~(0xF << 76 | 0x3 << 62) | version_and_variant
    digits = f"{milliseconds << 80 | bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def check_count(what: str, value: object) -> int:
    """``value``, if it is a whole number from 0 on that every database can count to."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidInput(f"{what} {value!r} is not usable: give a whole number, 0 or more")
    return value


def check_limit(value: object) -> int:
    """``value``, if it is a whole number; negative ones mean none, as upstream's callers expect."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInput(f"limit {value!r} is not usable: give a whole number")
    return value


def _check_text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidIdentifier(what, value, f"is a {type(value).__name__}; give a string")
    if not value:
        raise InvalidIdentifier(what, value, "is empty")
    if problem := text_problem(value):
        raise InvalidIdentifier(what, value, problem)
    if len(value.encode()) > MAX_BYTES:
        raise InvalidIdentifier(what, value, f"has over {MAX_BYTES} bytes of UTF-8; shorten it")
    return value
