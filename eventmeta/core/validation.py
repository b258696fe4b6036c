"""Checks of arguments, before any I/O, the same for every database."""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from eventmeta.core.canonical_json import MAX_KEYS, check_key, check_number, text_problem
from eventmeta.core.deadline import Limits
from eventmeta.core.errors import InvalidIdentifier, InvalidInput, InvalidPoint

MAX_BYTES = 255
MAX_TABLE_NAME = 45
_TABLE_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_TABLE_NAME - 1}}}")
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")


def check_session_id(value: object) -> str:
    """Return ``value`` if it can be a session's id."""
    return _check_text("session id", value)


def check_user_id(value: object) -> str:
    """Return ``value`` if it can be a user's id."""
    return _check_text("user id", value)


def check_actor(value: object) -> str:
    """Return ``value`` if it can name an actor."""
    return _check_text("actor", value)


def check_run_id(value: object) -> str:
    """Return ``value`` if it can be the id of a run."""
    return _check_text("run id", value)


def check_table_name(value: object) -> str:
    """Return ``value`` if it can name a table on every database."""
    if not isinstance(value, str) or not _TABLE_NAME.fullmatch(value):
        raise InvalidIdentifier(
            "table name",
            value,
            f"is not usable: take up to {MAX_TABLE_NAME} ASCII letters, digits and underscores, no "
            "digit first "
            "(the names of its indexes contain it, and may have 63 characters)",
        )
    return value


def check_event_type(value: object, what: str = "event type") -> str:
    """Return ``value`` if it can be an event type, or another ``what`` with the same rules."""
    if not isinstance(value, str) or not _EVENT_TYPE.fullmatch(value):
        raise InvalidIdentifier(
            what,
            value,
            "is not usable: take up to 64 lower-case letters, digits, dots and underscores",
        )
    return value


def check_types(types: object) -> list[str] | None:
    """Return ``types`` as a list if they can be event types; None stands for all types."""
    if isinstance(types, str):
        raise InvalidInput(f"types is the string {types!r}; give a list: [{types!r}]")
    if types is None:
        return None
    if not isinstance(types, Iterable):
        raise InvalidInput(f"types is a {type(types).__name__}; give a list of strings")
    return [check_event_type(kind) for kind in cast("Iterable[object]", types)]


def check_event_id(value: object) -> str:
    """Return ``value`` as a canonical UUID string."""
    if isinstance(value, uuid.UUID):
        return str(value)
    try:
        return str(uuid.UUID(value if isinstance(value, str) else ""))
    except ValueError:
        raise InvalidIdentifier(
            "event id", value, "is not a UUID; make one with eventmeta.new_event_id()"
        ) from None


_VERSION_7 = 7 << 76 | 0b10 << 62
"""The bits of version and variant in a UUIDv7."""

_RANDOM = 2**80 - 1 & ~(0b1111 << 76 | 0b11 << 62)
"""The random bits of a UUIDv7."""


def new_event_id() -> str:
    """Return a new UUIDv7: 48 bits of Unix milliseconds, then random bits (RFC 9562, 5.7)."""
    milliseconds, random = time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10))
    bits = milliseconds << 80 | random & _RANDOM | _VERSION_7
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def derived_event_id(event_id: object, part: str) -> str:
    """Return the id for another ``part`` of a call's changes; the same for the same arguments."""
    return str(uuid.uuid5(uuid.UUID(check_event_id(event_id)), part))


def check_count(what: str, value: object) -> int:
    """Return ``value`` if it is a whole number, 0 or more, that every database can hold."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidInput(f"{what} {value!r} is not usable: give a whole number, 0 or more")
    return value


def check_positive(what: str, value: object) -> int:
    """Return ``value`` if it is a whole number, 1 or more, that every database can hold."""
    if check_count(what, value) == 0:
        raise InvalidInput(f"{what} is 0: give 1 or more")
    return cast("int", value)


def check_moment(value: object) -> datetime:
    """Return ``value`` in UTC if it is an aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidPoint(f"{value!r} is not a point in time: give an aware datetime")
    if value.utcoffset() is None:
        raise InvalidPoint(
            f"{value!r} has no time zone, so it names no moment: use an aware datetime, "
            "such as datetime.now(UTC)"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidPoint(f"{value!r} is out of the range of datetime in UTC") from None


def check_flag(what: str, value: object) -> None:
    """Raise unless ``value`` is True or False: a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{what} {value!r} is not usable: give True or False")


def check_seconds(what: str, value: object) -> float:
    """Return ``value`` if it is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInput(f"{what} {value!r} is not usable: give a number of seconds over 0")
    return value


def check_timeout(value: object) -> float:
    """Return ``value`` if it is a number of seconds, 0 or more."""
    return 0.0 if value == 0 else check_seconds("timeout", value)


def check_limits(timeout: object, retry_for: object) -> Limits:
    """Return the limits of a caller's waits for the database, in seconds, if both are usable."""
    return Limits(
        check_seconds("timeout", timeout),
        0.0 if retry_for == 0 else check_seconds("retry_for", retry_for),
    )


def check_keys(keys: object) -> list[str]:
    """Return ``keys``, each once, if they are metadata keys."""
    if isinstance(keys, str):
        raise InvalidInput(f"keys is the string {keys!r}; give a list: [{keys!r}]")
    if not isinstance(keys, Iterable):
        raise InvalidInput(f"keys is a {type(keys).__name__}; give a list of strings")
    found = list(dict.fromkeys(map(check_key, cast("Iterable[object]", keys))))
    check_number("keys", len(found), MAX_KEYS)
    return found


def check_items(items: object, *, of_any_kind: bool = False) -> list[Any]:
    """Return ``items`` as a list if they can be a session's items; an empty list if None.

    Args:
        items: The items as given to a call.
        of_any_kind: An app's subclass turns the items into texts, so they need not be dicts.

    Raises:
        InvalidInput: ``items`` is not a list, or one of them is not a dict.
    """
    if items is None:
        return []
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
        kind = type(cast("object", items)).__name__
        raise InvalidInput(f"items is a {kind}; give a list of dicts")
    found = list(cast("Iterable[Any]", items))
    for index, item in enumerate(found):
        if not (of_any_kind or isinstance(item, dict | Mapping)):
            raise InvalidInput(
                f"items[{index}] is a {type(item).__name__}; give a dict, such as "
                '{"role": "user", "content": "Hello"}'
            )
    return found


def check_limit(value: object) -> int:
    """Return ``value`` if it is a whole number; a negative limit means no items, as in upstream."""
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
