"""What one call may give has limits, and what is large does not stop the event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmeta import InvalidInput, MetadataStore, NewEvent, StoreClosed, ValueTooLarge, acting_as
from eventmeta.core import canonical_json as codec
from eventmeta.core.large_inputs import is_large
from eventmeta.session.items import _dump
from tests.support.helpers import user

LONGEST_STALL = 0.2
"""Seconds for which the event loop may stand still, on a machine that does other things as well."""

Act = Callable[[MetadataStore], Awaitable[Any]]


async def with_context(store: MetadataStore) -> None:
    with acting_as("me", blob="x" * 100_000):
        await store.session("s").set_metadata({"k": 1})


TOO_MUCH: dict[str, tuple[Act, type[InvalidInput], str]] = {
    "keys": (
        lambda store: store.session("s").set_metadata({f"k{n}": n for n in range(10_001)}),
        InvalidInput,
        "10,001 keys are over the limit of 10,000",
    ),
    "keys to delete": (
        lambda store: store.session("s").delete_metadata([f"k{n}" for n in range(10_001)]),
        InvalidInput,
        "10,001 keys are over the limit",
    ),
    "keys to read": (
        lambda store: store.session("s").get_metadata([f"k{n}" for n in range(10_001)]),
        InvalidInput,
        "10,001 keys are over the limit",
    ),
    "keys of a user": (
        lambda store: store.user("me").set_metadata({f"k{n}": n for n in range(10_001)}),
        InvalidInput,
        "10,001 keys are over the limit",
    ),
    "items": (
        lambda store: store.session("s").add_items([user("x")] * 10_001),
        InvalidInput,
        "10,001 items are over the limit of 10,000",
    ),
    "an item": (
        lambda store: store.session("s").add_items([user("x"), user("y" * 2**24)]),
        ValueTooLarge,
        r"items\[1\]: 16,777,\d+ bytes of JSON are over the limit of 16,777,216",
    ),
    "a context": (with_context, ValueTooLarge, "context: .* over the limit of 65,536"),
    "the context of an event": (
        lambda store: store.append("s", NewEvent("noted", {}, context={"blob": "x" * 100_000})),
        ValueTooLarge,
        "context: .* over the limit of 65,536",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_too_much_is_refused_before_any_io(name: str) -> None:
    act, kind, message = TOO_MUCH[name]
    store = MetadataStore.from_url("postgresql+asyncpg://nobody@nowhere.invalid/nothing")
    with pytest.raises(kind, match=message) as caught:
        await act(store)
    if isinstance(caught.value, ValueTooLarge):
        assert caught.value.size > caught.value.limit
    await store.close()


async def test_all_that_a_call_gives_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_CALL_BYTES", 1_000)
    monkeypatch.setattr("eventmeta.session.items.MAX_CALL_BYTES", 1_000)
    store = MetadataStore.from_url("postgresql+asyncpg://nobody@nowhere.invalid/nothing")
    with pytest.raises(ValueTooLarge, match=r"metadata: 1,0.* make several calls"):
        await store.session("s").set_metadata({f"k{n}": "x" * 100 for n in range(10)})
    with pytest.raises(ValueTooLarge, match=r"items: .* make several calls"):
        await store.session("s").add_items([user("x" * 100)] * 10)
    await store.close()


# --- The event loop ------------------------------------------------------------------------------


class Heartbeat:
    """Measures for how long the event loop stands still, at the longest.

    Attributes:
        longest: Seconds of work of the loop's own thread between two turns of another task.
        stall: Seconds by the clock, which other programs of the machine are part of.
        seconds: How long all of it took.
    """

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.02)
        self.longest = self.stall = 0.0
        self._start = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start
        await asyncio.sleep(0.01)
        self._task.cancel()

    async def _beat(self) -> None:
        self.longest = self.stall = 0.0
        while True:
            clock, work = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.002)
            self.stall = max(self.stall, time.monotonic() - clock)
            self.longest = max(self.longest, time.thread_time() - work)


def nested(values: int) -> list[Any]:
    """A value of many parts, which takes long to be checked and encoded."""
    return [{"a": n, "b": [n, str(n), None, True]} for n in range(values)]


LARGE: dict[str, Callable[[MetadataStore, list[Any]], Awaitable[Any]]] = {
    "a value": lambda store, value: store.session("s", max_value_bytes=2**25).set_metadata(
        {"k": value}
    ),
    "an item": lambda store, value: store.session("s").add_items([user(value)]),
    "items": lambda store, value: store.session("s").add_items([user(value[:20])] * 10_000),
    "data": lambda store, value: MetadataStore(store.engine, max_value_bytes=2**25).append(
        "s", NewEvent("noted", {"k": value})
    ),
}


@pytest.mark.parametrize("name", LARGE)
async def test_what_is_large_does_not_stop_the_event_loop(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Encoding takes over a second. What the driver does with the text is its own affair."""
    submitted: list[Any] = []

    async def submit(command: Any, *_: Any) -> Any:
        submitted.append(command)
        raise StoreClosed

    await store.session("s").set_metadata({"first": True})
    value = nested(200_000)
    gc.freeze()  # what the test has made is not looked through again and again
    with monkeypatch.context() as patch:
        patch.setattr(store.log, "submit", submit)
        async with Heartbeat() as heartbeat:
            with pytest.raises(StoreClosed):
                await LARGE[name](store, value)
    gc.unfreeze()
    assert len(submitted) == 1
    assert heartbeat.longest < LONGEST_STALL
    assert heartbeat.stall < max(LONGEST_STALL, heartbeat.seconds / 2)


async def test_what_is_large_is_stored_whole_and_read(store: MetadataStore) -> None:
    session = store.session("s")
    items = [user("é" * 1_000_000), user(nested(3_000)), *([user("x")] * 3_000)]
    metadata = {"large": nested(5_000), **{f"k{n}": n for n in range(2_000)}}
    await session.add_items(items)
    await session.set_metadata(metadata)
    assert await session.get_items() == items
    assert await session.get_metadata() == metadata


async def test_a_large_write_is_not_overtaken_by_those_after_it(store: MetadataStore) -> None:
    """By none of the same session, through any handle; others do not wait."""
    large = {"k": 0, "large": nested(5_000)}
    calls = [
        store.session("s").set_metadata({"k": -1}),
        store.session("s").set_metadata(large),
        store.session("s").set_metadata({"k": 1}),
        store.session("s").add_items([user(nested(5_000))]),
        store.session("s").add_items([user("last")]),
        store.session("s").set_metadata({"k": 2}),
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    other = await store.session("other").set_metadata({"k": 1})
    events = await asyncio.gather(*tasks)
    assert [event.version for event in events] == [1, 2, 3, 4, 5, 6]
    assert other is not None
    assert other.position < events[1].position
    assert (await store.session("s").get_items())[-1] == user("last")


async def test_a_large_write_that_fails_or_is_cancelled_lets_the_next_go(
    store: MetadataStore,
) -> None:
    session = store.session("s")
    bad = asyncio.create_task(session.set_metadata({"k": [*nested(5_000), float("nan")]}))
    cancelled = asyncio.create_task(session.set_metadata({"k": nested(5_000)}))
    last = asyncio.create_task(session.set_metadata({"k": 1}))
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(bad, cancelled, last, return_exceptions=True)
    assert isinstance(results[0], InvalidInput)
    assert isinstance(results[1], asyncio.CancelledError)
    assert await session.get_metadata() == {"k": 1}


# --- The encoder ---------------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.booleans())
def test_what_is_encoded_piece_by_piece_is_the_same_text(value: Any, ensure_ascii: bool) -> None:
    large: Any = [value, "x" * 700_000]
    assert is_large(large)
    small = _dump(value, ensure_ascii=ensure_ascii)
    assert _dump(large, ensure_ascii=ensure_ascii).startswith(f"[{small},")


def test_it_takes_no_time_to_see_that_something_is_large() -> None:
    large: list[Any] = [[[]] * 10_000_000, "x" * 10_000_000, {"k": ["x" * 1_000] * 1_000_000}]
    for value in large:
        start = time.monotonic()
        assert is_large(value)
        assert time.monotonic() - start < 0.1
    assert not is_large({"k": 1, "l": "x" * 1_000, "m": [1, 2, 3]})
