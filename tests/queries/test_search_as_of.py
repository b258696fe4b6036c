"""Which sessions had a value at a point of the past."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventmeta import InvalidPoint, MetadataStore, Position
from tests.support.backends import Backend

KEYS = ["state", "100%", "a_b", "a|b", 'say "hi"', "back\\slash", "später 🌍", "'", "x" * 255]


async def found(store: MetadataStore, value: object, **options: Any) -> list[str]:
    return await store.find_sessions_by_metadata("state", value, **options)


async def test_at_every_position_those_are_found_that_had_it_then(store: MetadataStore) -> None:
    events = []
    for name, state in [("a", "open"), ("b", "open"), ("a", "closed"), ("c", 1), ("b", None)]:
        events.append(await store.session(name).set_metadata({"state": state, "other": "open"}))
    events.append(await store.session("b").delete_metadata())
    events.append(await store.session("c").clear_session())
    events.append(await store.session("c").set_metadata({"state": "open"}))
    sessions = ["a", "b", "c"]
    for event in events:
        assert event is not None
        point = event.position
        then = {name: await store.session(name).get_metadata(as_of=point) for name in sessions}
        for value in ("open", "closed", 1, None):
            expected = [
                name for name in sessions if "state" in then[name] and then[name]["state"] == value
            ]
            assert await found(store, value, as_of=point) == expected
            assert await found(store, value, as_of=int(point)) == expected
    assert await found(store, "open", as_of=Position(0)) == []
    assert await found(store, "open", as_of=await store.horizon()) == await found(store, "open")


async def test_a_time_is_a_point_as_well(store: MetadataStore) -> None:
    first = await store.session("a").set_metadata({"state": "open"})
    await store.session("a").set_metadata({"state": "closed"})
    assert first is not None
    assert await found(store, "open", as_of=first.recorded_at) == ["a"]
    assert await found(store, "open", as_of=first.recorded_at - timedelta(microseconds=1)) == []
    assert await found(store, "closed", as_of=datetime.now(UTC) + timedelta(days=1)) == ["a"]


@pytest.mark.parametrize("key", KEYS)
async def test_keys_of_any_characters_are_found(store: MetadataStore, key: str) -> None:
    event = await store.session("a").set_metadata({key: True})
    await store.session("b").set_metadata({"z": key})
    await store.session("a").delete_metadata([key])
    assert event is not None
    assert await store.find_sessions_by_metadata(key, True, as_of=event.position) == ["a"]
    assert await store.find_sessions_by_metadata(key, True, as_of=event.position + 99) == []


async def test_pages_and_limits(store: MetadataStore) -> None:
    for number in range(7):
        await store.session(f"s{number}").set_metadata({"state": "open"})
    then = await store.horizon()
    await store.session("s0").delete_metadata()
    assert await found(store, "open", limit=3, as_of=then) == ["s0", "s1", "s2"]
    assert await found(store, "open", limit=3, after="s2", as_of=then) == ["s3", "s4", "s5"]
    assert len(await found(store, "open", limit=None, as_of=then)) == 7


async def test_a_user_finds_only_own_sessions_of_the_past(store: MetadataStore) -> None:
    for owner in ("ann", "bob"):
        session = await store.create_session(owner)
        await session.set_metadata({"state": "open"})
    then = await store.horizon()
    mine = await store.as_user("ann").find_sessions_by_metadata("state", "open", as_of=then)
    assert mine == await store.get_sessions_for_user("ann")


async def test_what_is_no_point_is_refused(store: MetadataStore, backend: Backend) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    for point in (naive, -1, True, "yesterday"):
        with pytest.raises(InvalidPoint):
            await found(store, "open", as_of=point)
