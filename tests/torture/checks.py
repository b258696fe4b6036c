"""The promises of the store, checked against what the writers wrote down."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import text

from eventmeta import MetadataStore, RecordedEvent, verify_projection
from tests.support.helpers import contents
from tests.support.rebuilding import TRACED
from tests.torture.journal import Attempt, History


async def violations(
    store: MetadataStore, history: History, fed: Sequence[int], applied: Sequence[int]
) -> list[str]:
    """Return every promise that is broken, as a sentence each.

    Args:
        store: The database, after all writers have ended.
        history: What they wrote down.
        fed: The positions that a reader of the feed saw meanwhile, in its order.
        applied: The positions that a projection applied, in its order.
    """
    events = [event async for event in store.events()]
    items = await items_of(store)
    found = [
        *(f"unexpected: {error}" for error in history.unexpected),
        *recorded_once(events, history),
        *counted_through(events),
        *seen_once("the feed", events, fed),
        *seen_once("the projection", [each for each in events if each.type in TRACED], applied),
        *in_order(events, history),
        *items_in_order(items, history),
        *items_as_recorded(items, events, history),
    ]
    found += [f"differs from the log: {each}" for each in await verify_projection(store)]
    return found


async def items_of(store: MetadataStore) -> dict[str, list[str]]:
    """Return the texts of the items of each session, in order."""
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT session_id FROM agent_sessions"))
        names = sorted(row[0] for row in rows)
    return {name: contents(await store.session(name).get_items()) for name in names}


def recorded_once(events: Sequence[RecordedEvent], history: History) -> Iterator[str]:
    """What was acknowledged is recorded; what was refused is not; nothing is recorded twice."""
    times: dict[str, int] = defaultdict(int)
    for event in events:
        times[event.event_id] += 1
    for attempt in history.attempts.values():
        count = times.get(attempt.key, 0)
        if attempt.kind == "upstream":
            continue
        changes = attempt.kind in ("add", "set")  # the others may find nothing to do
        if attempt.ending == "acknowledged" and changes and count == 0:
            yield f"lost: {attempt.key}, {attempt.kind} in {attempt.session_id}"
        if attempt.ending == "refused" and count:
            yield f"recorded though refused: {attempt.key} ({attempt.error})"
        if count > 1:
            yield f"recorded {count} times: {attempt.key}"


def counted_through(events: Sequence[RecordedEvent]) -> Iterator[str]:
    """Positions rise; versions count 1, 2, 3 … in each stream."""
    versions: dict[tuple[str, str], int] = defaultdict(int)
    last = 0
    for event in events:
        stream = event.stream_type, event.stream_id
        versions[stream] += 1
        if event.version != versions[stream]:
            yield f"version {event.version} of {stream} where {versions[stream]} was due"
        if event.position <= last:
            yield f"position {event.position} after {last}"
        last = event.position


def seen_once(who: str, events: Sequence[RecordedEvent], seen: Sequence[int]) -> Iterator[str]:
    """A reader that follows the log sees each event once, in order."""
    positions = [event.position for event in events]
    if list(seen) != positions:
        skipped = sorted(set(positions) - set(seen))
        yield f"{who} saw {len(seen)} of {len(positions)} events; skipped {skipped[:5]}"


def in_order(events: Sequence[RecordedEvent], history: History) -> Iterator[str]:
    """What was acknowledged before another write of the session began is recorded before it."""
    positions = {event.event_id: event.position for event in events}
    there = [each for each in history.attempts.values() if each.key in positions]
    for earlier, later in _acknowledged_before(there, lambda each: positions[each.key]):
        yield f"{earlier.key} was acknowledged before {later.key} began, but comes after it"


def items_in_order(items: dict[str, list[str]], history: History) -> Iterator[str]:
    """Items come in the order in which they were acknowledged, upstream's own too."""
    places = {text: n for texts in items.values() for n, text in enumerate(texts)}
    numbers = {
        each.key: [places[text] for text in each.texts if text in places]  # some may be popped
        for each in history.attempts.values()
    }
    there = [each for each in history.attempts.values() if numbers[each.key]]
    for attempt in there:
        own = numbers[attempt.key]
        if own != list(range(own[0], own[0] + len(own))):
            yield f"the items of {attempt.key} are apart or out of order: {own}"
    for earlier, later in _acknowledged_before(there, lambda each: numbers[each.key][0]):
        yield f"the items of {later.key} come before those of {earlier.key}, acknowledged before"


def items_as_recorded(
    items: dict[str, list[str]], events: Sequence[RecordedEvent], history: History
) -> Iterator[str]:
    """The items are what the log says. A session in which upstream wrote is left out."""
    theirs = {each.session_id for each in history.attempts.values() if each.kind == "upstream"}
    expected: dict[str, dict[int, str]] = defaultdict(dict)
    for event in events:
        own = expected[event.stream_id]
        if event.type == "items_added":
            texts = history.attempts[event.event_id].texts
            own.update(zip(event.data["item_ids"], texts, strict=True))
        elif event.type == "item_popped":
            newest = list(own)[-1] if own else None
            if event.stream_id not in theirs and newest != event.data["item_id"]:
                yield f"{event.event_id} removed item {event.data['item_id']}, not {newest}"
            own.pop(event.data["item_id"], None)
    for session_id in (items.keys() | expected.keys()) - theirs:
        if items.get(session_id, []) != list(expected[session_id].values()):
            yield f"the items of {session_id} are not those that the log tells"


def _acknowledged_before(
    attempts: Sequence[Attempt], place: Callable[[Attempt], int]
) -> Iterator[tuple[Attempt, Attempt]]:
    """Yield pairs of one session where the first was acknowledged before the second began, and yet
    has the greater ``place``."""
    lines = [(each.began, False, each) for each in attempts]
    lines += [
        (each.ended, True, each)
        for each in attempts
        if each.ending == "acknowledged" and each.ended is not None
    ]
    greatest: dict[str, Attempt] = {}
    for _, is_end, attempt in sorted(lines, key=lambda line: line[0]):
        known = greatest.get(attempt.session_id)
        if not is_end:
            if known is not None and place(known) > place(attempt):
                yield known, attempt
        elif known is None or place(known) < place(attempt):
            greatest[attempt.session_id] = attempt


def summary(history: History) -> str:
    """Return how many writes ended in which way."""
    counts: dict[str, int] = defaultdict(int)
    for attempt in history.attempts.values():
        counts[attempt.ending] += 1
    errors = sorted({each.error.partition("(")[0] for each in history.ended("refused")})
    return json.dumps({**counts, "refused with": errors})
