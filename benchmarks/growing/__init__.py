"""What may be large, how it is made, and every public call whose time could depend on it."""

from __future__ import annotations

from benchmarks.growing.base import Input, talk, the_session
from benchmarks.growing.items import (
    TEXTS,
    chained,
    of_items,
    of_text,
    one_by_one,
    one_call,
    unreadable,
)
from benchmarks.growing.log import EVENTS, PARKED, register
from benchmarks.growing.metadata import of_metadata, of_value
from benchmarks.growing.sessions import HANDED_ON, SESSIONS, USERS
from benchmarks.growing.usage import USAGE

__all__ = ["INPUTS", "Input", "register"]

INPUTS: dict[str, Input] = {
    "items": Input(100, of_items(talk)),
    "items, turns linked": Input(100, of_items(chained)),
    "items of one call id": Input(100, of_items(one_call)),
    "items, unreadable": Input(100, of_items(unreadable)),
    "items, one by one": Input(50, one_by_one(talk)),
    **{f"text: {name}": Input(4_000, of_text(unit)) for name, unit in TEXTS.items()},
    "keys": Input(100, of_metadata(the_session)),
    "keys of a user": Input(100, of_metadata(lambda store: store.user("ann"))),
    "value: a list": Input(1_000, of_value(lambda n: [*range(n)])),
    "value: a text": Input(5_000, of_value(lambda n: "é\\" * (n // 2))),
    "value: an object": Input(500, of_value(lambda n: {str(number): 1.0 for number in range(n)})),
    "events": Input(100, EVENTS),
    "parked streams": Input(20, PARKED),
    "sessions": Input(50, SESSIONS),
    "transfers": Input(50, HANDED_ON),
    "users": Input(50, USERS),
    "usage": Input(50, USAGE),
}
"""What grows, by its name."""
