"""What may be large, and what is timed on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from eventmeta import MetadataSession, MetadataStore

Call = Callable[[MetadataStore, int], Awaitable[object]]

NAME = "growing"
AT_ONCE = 500


@dataclass(frozen=True)
class Input:
    """Something that grows.

    Attributes:
        base: The smallest size; the others are ten and a hundred times as large.
        calls: What is timed, in this order, on a store that began empty. A call that is made first,
            such as the one that writes what the others read, is timed as well.
    """

    base: int
    calls: Mapping[str, Call]


def the_session(store: MetadataStore) -> MetadataSession:
    return store.session(NAME)


async def gather(calls: Iterable[Awaitable[object]]) -> None:
    waiting = [*calls]
    for start in range(0, len(waiting), AT_ONCE):
        await asyncio.gather(*waiting[start : start + AT_ONCE])


async def count(events: AsyncIterator[object], most: int | None = None) -> int:
    number = 0
    async with aclosing(cast(Any, events)) as following:
        async for _ in following:
            number += 1
            if number == most:
                break
    return number


def talk(n: int) -> Iterator[Any]:
    """Turns of four items each: a question, a call, its output, an answer."""
    for turn in range(n // 4):
        yield {"role": "user", "content": f"What comes after {turn}?"}
        call = {"type": "function_call", "call_id": f"c{turn}", "name": "next", "arguments": "{}"}
        yield call
        yield {"type": "function_call_output", "call_id": f"c{turn}", "output": str(turn + 1)}
        yield {"role": "assistant", "content": f"{turn + 1}."}
