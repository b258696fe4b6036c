"""JSON's own idea of values: what is the same, and what is equal."""

from __future__ import annotations

import json
from typing import Any


def exact(value: Any) -> str:
    """A text that tells all JSON values apart, and 1 from 1.0; the order of names is no part."""
    return json.dumps(value, sort_keys=True)


def equal(a: Any, b: Any) -> bool:
    """Equality as JSON has it: 1 is 1.0, True is not 1."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)
