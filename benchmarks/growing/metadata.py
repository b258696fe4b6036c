"""Metadata: how many keys there are, and how large the values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.growing.base import NAME, Call, the_session
from eventmeta import MetadataStore, NewEvent


def _document(n: int) -> dict[str, Any]:
    return {f"key-{number:07}": number for number in range(n)}


def of_metadata(opened: Callable[[MetadataStore], Any]) -> dict[str, Call]:
    return {
        "set_metadata(n keys)": lambda store, n: opened(store).set_metadata(_document(n)),
        "set_metadata(again)": lambda store, n: opened(store).set_metadata(_document(n)),
        "get_metadata()": lambda store, _: opened(store).get_metadata(),
        "get_metadata(n keys)": lambda store, n: opened(store).get_metadata([*_document(n)]),
        "get_metadata(as_of=…)": lambda store, _: opened(store).get_metadata(as_of=2),
        "history()": lambda store, _: opened(store).history(),
        "history(key)": lambda store, _: opened(store).history("key-0000001"),
        "diff()": lambda store, _: opened(store).diff(0, 2),
        "delete_metadata(n/2 keys)": lambda store, n: opened(store).delete_metadata(
            [*_document(n // 2)]
        ),
        "delete_metadata()": lambda store, _: opened(store).delete_metadata(),
    }


def of_value(made: Callable[[int], Any]) -> dict[str, Call]:
    return {
        "set_metadata()": lambda store, n: the_session(store).set_metadata({"value": made(n)}),
        "get_metadata()": lambda store, _: the_session(store).get_metadata(),
        "find_sessions_by_metadata()": lambda store, n: store.find_sessions_by_metadata(
            "value", made(n)
        ),
        "history()": lambda store, _: the_session(store).history(),
        "diff()": lambda store, _: the_session(store).diff(0, 1),
        "append()": lambda store, n: store.append(NAME, NewEvent("noted", {"value": made(n)})),
        "user.set_metadata()": lambda store, n: store.user("ann").set_metadata({"value": made(n)}),
        "user.get_metadata()": lambda store, _: store.user("ann").get_metadata(),
    }
