"""JSON as the store keeps it: validated, canonical, exact.

Databases and JSON libraries disagree about the edges of JSON (NaN, large integers, surrogates, NUL,
depth). This module refuses every value that any of them would alter, before any I/O, so that every
backend takes and returns the same values.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from typing import Any, cast

import orjson

from eventmeta.core.errors import InvalidInput, InvalidKey, InvalidValue, ValueTooLarge

JSONValue = None | bool | int | float | str | list["JSONValue"] | dict[str, "JSONValue"]

_CONTAINERS = (dict, list)

MAX_KEY_BYTES = 255
MAX_DEPTH = 64
MAX_INDEXED_BYTES = 64
DEFAULT_MAX_VALUE_BYTES = 2**20

MAX_KEYS = 10_000
"""The most keys of metadata that one call may name."""

MAX_ITEMS = 10_000
"""The most items that one call may add."""

MAX_ITEM_BYTES = 16 * 2**20
"""The maximum length of an item, in bytes of JSON."""

MAX_CALL_BYTES = 64 * 2**20
"""The maximum total length of the values or items of one call, in bytes of JSON."""

MAX_CONTEXT_BYTES = 64 * 2**10
"""The maximum length of the context of a call, in bytes of JSON."""

Change = list[str | None]
"""``[key, text]``, ``[key, text, indexed]``, or ``[key, None]`` if the key is removed."""


def encode_changes(metadata: object, max_value_bytes: int) -> list[Change]:
    """Return each entry of ``metadata`` as the log keeps it.

    Raises:
        InvalidInput: ``metadata`` is not a mapping, or has over `MAX_KEYS` keys.
        InvalidKey: A key is not a non-empty string of at most 255 bytes.
        InvalidValue: A value is not JSON; the error names the path to it.
        ValueTooLarge: A value is over ``max_value_bytes`` (a string's own quotes are not counted),
            or all values together are over `MAX_CALL_BYTES`.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata is a {type(metadata).__name__}; give a dict")
    entries = cast("Mapping[object, object]", metadata)
    check_number("keys", len(entries), MAX_KEYS)
    changes: list[Change] = []
    size = 0
    for key, value in entries.items():
        changes.append(_change(key, value, max_value_bytes))
        size += len(changes[-1][1] or "")
        check_size("metadata", size, MAX_CALL_BYTES)
    return changes


def check_number(what: str, number: int, limit: int) -> None:
    """Raise unless one call has at most ``limit`` of something.

    Raises:
        InvalidInput: There are more.
    """
    if number > limit:
        raise InvalidInput(
            f"{number:,} {what} are over the limit of {limit:,} in one call: make several calls"
        )


def check_size(path: str, size: int, limit: int) -> None:
    """Raise unless one call has at most ``limit`` bytes.

    Raises:
        ValueTooLarge: There are more; the error calls the value ``path``.
    """
    if size > limit:
        raise ValueTooLarge(path, size, limit, "make several calls")


def context_text(context: Mapping[str, Any]) -> str | None:
    """Return the canonical JSON of the context of a call; None if it is empty.

    Raises:
        InvalidValue: The context is not JSON.
        ValueTooLarge: The context is over `MAX_CONTEXT_BYTES`.
    """
    if not context:
        return None
    text = dump_canonical(context, "context")
    if (size := len(text.encode())) > MAX_CONTEXT_BYTES:
        raise ValueTooLarge("context", size, MAX_CONTEXT_BYTES, "make it an event of its own")
    return text


def _change(key: object, value: Any, max_value_bytes: int) -> Change:
    name = check_key(key)
    spelling_varies = _check(value, name, 0)
    text = _dumps(value)
    size = len(text) - 2 * isinstance(value, str)
    if size > max_value_bytes:
        raise ValueTooLarge(name, size, max_value_bytes)
    indexed = _indexed(_dumps(_respelled(value)) if spelling_varies else text)
    if indexed == text:
        return [name, text.decode()]
    return [name, text.decode(), indexed.decode()]


def dump_canonical(value: Any, path: str) -> str:
    """Return the canonical JSON text of ``value``: keys sorted, no spaces.

    Raises:
        InvalidValue: ``value`` is not JSON; the error calls it ``path``.
    """
    _check(value, path, 0)
    return _dumps(value).decode()


def indexed_value(value: Any, path: str) -> str:
    """Return the text by which the index finds ``value``; equal JSON values have equal texts."""
    _check(value, path, 0)
    return _indexed(_dumps(_respelled(value))).decode()


def parse(text: str) -> Any:
    """Return the value of a canonical JSON text."""
    return orjson.loads(text)


def json_error(value: object, path: str, error: Exception) -> InvalidInput:
    """Return an error that says where in ``value`` `json.dumps` found what is not JSON.

    `json.dumps` raised ``error`` for ``value``. It also accepts things that JSON does not have,
    such as NaN and keys that are numbers; those are not reported.
    """
    if isinstance(error, RecursionError):
        return InvalidValue(path, "nested too deep to be stored, or it contains itself; flatten it")
    places: list[tuple[str, object]] = [(path, value)]
    seen: set[int] = set()
    while places:
        where, part = places.pop()
        if isinstance(part, dict | list | tuple):
            if id(cast("object", part)) in seen:
                continue  # contains itself, or occurs twice
            seen.add(id(cast("object", part)))
        if isinstance(part, dict):
            entries = cast("dict[object, object]", part)
            for name in entries:
                if not isinstance(name, str | int | float | bool | None):
                    return InvalidValue(where, f"the object key {name!r} is not a string")
            places += [(f"{where}.{name}", each) for name, each in reversed(entries.items())]
        elif isinstance(part, list | tuple):
            elements = cast("list[object] | tuple[object, ...]", part)
            places += [(f"{where}[{n}]", each) for n, each in reversed([*enumerate(elements)])]
        elif not isinstance(part, str | int | float | None):
            advice = _advice(part)
            return InvalidValue(
                where, f"a {type(part).__name__} is not JSON; store {advice} instead"
            )
    return InvalidInput(f"{path}: {error}")


def check_key(key: object) -> str:
    """Return ``key`` if it can name metadata.

    Raises:
        InvalidKey: ``key`` is not a non-empty string of at most 255 bytes without NUL.
    """
    if type(key) is str and 0 < len(key) <= MAX_KEY_BYTES and key.isascii() and "\x00" not in key:
        return key
    if not isinstance(key, str):
        raise InvalidKey(key, f"is a {type(key).__name__}; keys are strings")
    if not key:
        raise InvalidKey(key, "is empty; give it a name")
    if problem := text_problem(key):
        raise InvalidKey(key, problem)
    if len(key) > MAX_KEY_BYTES or len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidKey(
            key, f"has {len(key.encode())} bytes of UTF-8; at most {MAX_KEY_BYTES} are allowed"
        )
    return key


def text_problem(text: str) -> str | None:
    """Return why some database cannot hold ``text``; None if all can."""
    if "\x00" in text:
        return "contains NUL (U+0000), which PostgreSQL cannot store; remove it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"contains a lone surrogate at index {error.start}, which is not Unicode text"
    return None


def _check(value: object, path: str, depth: int) -> bool:
    """Raise unless ``value`` is JSON; return whether JSON can spell it otherwise (1.0 as 1)."""
    if value is None or isinstance(value, bool):
        return False
    if isinstance(value, str):
        if problem := text_problem(value):
            raise InvalidValue(path, f"the text {problem}")
        return False
    if isinstance(value, _CONTAINERS):
        return _check_container(cast("dict[Any, Any] | list[Any]", value), path, depth)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise InvalidValue(
                path, f"the integer needs {value.bit_length()} bits, over 64; store it as a string"
            )
        return False
    if type(value) is float:
        if not math.isfinite(value):
            raise InvalidValue(path, f"{value} is not a JSON number; use None or a string")
        return value.is_integer()
    raise InvalidValue(
        path, f"a {type(value).__name__} is not JSON; store {_advice(value)} instead"
    )


def _check_container(value: dict[Any, Any] | list[Any], path: str, depth: int) -> bool:
    if depth == MAX_DEPTH:
        raise InvalidValue(path, f"nested deeper than {MAX_DEPTH} levels; flatten it")
    spelling_varies = False
    if isinstance(value, dict):
        # The items that a subclass of dict or list claims to have are ignored, as orjson does it.
        for name, item in dict[Any, Any].items(value):
            where = f"{path}.{_check_name(name, path)}"
            spelling_varies |= _check(item, where, depth + 1)
    else:
        for index, item in enumerate(list[Any].__iter__(value)):
            spelling_varies |= _check(item, f"{path}[{index}]", depth + 1)
    return spelling_varies


def _check_name(name: object, path: str) -> str:
    if type(name) is not str:
        raise InvalidValue(
            path,
            f"the object key {name!r} is a {type(name).__name__}; JSON keys are strings",
        )
    if problem := text_problem(name):
        raise InvalidValue(path, f"an object key {problem}")
    return name


_ADVICE = {
    "datetime": "value.isoformat()",
    "date": "value.isoformat()",
    "time": "value.isoformat()",
    "set": "sorted(value)",
    "frozenset": "sorted(value)",
    "tuple": "list(value)",
    "bytes": "a base64 string",
    "Decimal": "str(value)",
    "UUID": "str(value)",
    "float64": "float(value)",
}


def _advice(value: object) -> str:
    if hasattr(value, "model_dump"):
        return "value.model_dump(mode='json')"
    return _ADVICE.get(type(value).__name__, "JSON types")


def _respelled(value: JSONValue) -> JSONValue:
    """Return ``value`` with every whole number as an integer."""
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, dict):
        return {name: _respelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_respelled(item) for item in value]
    return value


def _indexed(text: bytes) -> bytes:
    if len(text) <= MAX_INDEXED_BYTES:
        return text
    digest = hashlib.sha256(text).digest()
    return b"sha256:" + base64.urlsafe_b64encode(digest).rstrip(b"=")


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
