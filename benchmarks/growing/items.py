"""Items: how many there are, and how long they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.growing.base import Call, gather, talk, the_session
from eventmeta import MetadataStore, backfill_conversations, verify_projection


def chained(n: int) -> Iterator[Any]:
    """Turns each of which has the output of the call in the one before."""
    for turn in range(n // 3):
        yield {"role": "user", "content": "Go on."}
        yield {"type": "function_call_output", "call_id": f"c{turn - 1}", "output": "done"}
        yield {"type": "function_call", "call_id": f"c{turn}", "name": "next", "arguments": "{}"}


def one_call(n: int) -> Iterator[Any]:
    """Calls and outputs which all have the same id."""
    yield {"role": "user", "content": "Again."}
    for number in range(n // 2):
        yield {"type": "function_call", "call_id": "c", "name": "again", "arguments": "{}"}
        yield {"type": "function_call_output", "call_id": "c", "output": str(number)}


def of_items(made: Callable[[int], Iterator[Any]]) -> dict[str, Call]:
    return {
        "add_items(n)": lambda store, n: the_session(store).add_items([*made(n)]),
        "get_items()": lambda store, _: the_session(store).get_items(),
        "get_items(10)": lambda store, _: the_session(store).get_items(10),
        "get_items(n)": lambda store, n: the_session(store).get_items(n),
        "get_items(turns=1)": lambda store, _: the_session(store).get_items(turns=1),
        "get_items(turns=n)": lambda store, n: the_session(store).get_items(turns=n),
        "get_turns()": lambda store, _: the_session(store).get_turns(),
        "get_turns(10)": lambda store, _: the_session(store).get_turns(10),
        "get_conversation_by_turns()": lambda store, _: the_session(
            store
        ).get_conversation_by_turns(),
        "get_tool_usage()": lambda store, _: the_session(store).get_tool_usage(),
        "get_turn_usage()": lambda store, _: the_session(store).get_turn_usage(),
        "history()": lambda store, _: the_session(store).history(),
        "add_items(4)": lambda store, _: the_session(store).add_items([*talk(4)]),
        "pop_item()": lambda store, _: the_session(store).pop_item(),
        "verify_projection()": lambda store, _: verify_projection(store),
        "backfill_conversations()": lambda store, _: backfill_conversations(store),
        "clear_session()": lambda store, _: the_session(store).clear_session(),
    }


def one_by_one(kind: Callable[[int], Iterator[Any]]) -> dict[str, Call]:
    async def add(store: MetadataStore, n: int) -> None:
        await gather(the_session(store).add_items([item]) for item in kind(n))

    async def pop(store: MetadataStore, n: int) -> None:
        await gather(the_session(store).pop_item() for _ in range(n))

    return {"add_items, n times": add, "pop_item, n times": pop}


def of_text(unit: str) -> dict[str, Call]:
    """An item whose text, of so many characters, is made of one ``unit``."""

    def item(n: int, kind: str) -> list[Any]:
        text = unit * max(n // len(unit), 1)
        if kind == "output":
            return [{"type": "function_call_output", "call_id": "c", "output": text}]
        if kind == "call":
            call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": text}
            return [call]
        return [{"role": "user", "content": [{"type": "input_text", "text": text}]}]

    return {
        "add_items, a message": lambda s, n: the_session(s).add_items(item(n, "message")),
        "add_items, a call": lambda s, n: the_session(s).add_items(item(n, "call")),
        "add_items, its output": lambda s, n: the_session(s).add_items(item(n, "output")),
        "get_items()": lambda store, _: the_session(store).get_items(),
        "get_items(turns=1)": lambda store, _: the_session(store).get_items(turns=1),
        "get_turns()": lambda store, _: the_session(store).get_turns(),
        "get_conversation_by_turns()": lambda store, _: the_session(
            store
        ).get_conversation_by_turns(),
        "verify_projection()": lambda store, _: verify_projection(store),
        "backfill_conversations()": lambda store, _: backfill_conversations(store),
        "pop_item()": lambda store, _: the_session(store).pop_item(),
        "clear_session()": lambda store, _: the_session(store).clear_session(),
    }


NESTED = json.dumps(json.dumps([{"name": "x", "emoji": "\N{GRINNING FACE}", "path": "C:\\temp"}]))
TEXTS = {
    "plain text": "What comes after that? ",
    "escapes": '\\alpha "quoted"\n',
    "JSON in JSON": NESTED,
    "emoji": "\N{GRINNING FACE}",
    "NUL": "\x00",
    "halves of characters": "\udc80\ud83d ",
}


def unreadable(n: int) -> Iterator[Any]:
    """Items of which a database cannot read a single one as it is."""
    for number in range(n // 2):
        yield {"role": "user", "content": f"\x00{number}"}
        yield {"type": "function_call_output", "call_id": f"c{number}", "output": "\udc80"}
