"""The log: appending to it once and in order, and reading all that was appended."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from eventmeta import (
    EventIdReused,
    ItemAlreadyPopped,
    MetadataSession,
    MetadataStore,
    NewEvent,
    RecordedEvent,
    VersionConflict,
    new_event_id,
)
from eventmeta.database import event_reading as log_module
from tests.support.helpers import user


async def recorded(store: MetadataStore, **filters: Any) -> list[RecordedEvent]:
    return [event async for event in store.events(**filters)]


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """What each of the calls returned or raised; they are made at once."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


# --- Append -------------------------------------------------------------------------------------


async def test_append_returns_the_event_as_it_is_read(store: MetadataStore) -> None:
    event_id = str(uuid.uuid4())
    new = NewEvent(
        "ticket.opened",
        {
            "z": [1, 1.0, True, None, '🐘 é e\u0301 \\ " %s :x'],
            "a": {"": 2**64 - 1, "b": 0.1 + 0.2},
        },
        event_id=event_id,
        actor="büro",
        context={"trace_id": "t1", "n": 1.0},
    )
    event = await store.append("séance ", new)
    assert (event.stream_type, event.stream_id, event.version) == ("session", "séance ", 1)
    assert (event.event_id, event.type, event.actor) == (event_id, "ticket.opened", "büro")
    (read,) = await recorded(store)
    assert read == event
    assert (repr(read.data), repr(read.context)) == (repr(event.data), repr(event.context))
    assert sorted(read.data) == ["a", "z"]
    assert repr(read.data["z"]) == repr(new.data["z"])
    assert repr(read.data["a"]["b"]) == "0.30000000000000004"


async def test_append_needs_no_session_and_makes_none(store: MetadataStore) -> None:
    await store.append("alpha", NewEvent("noted"))
    async with store.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM agent_sessions")) == 0
    assert await store.session("alpha").get_metadata() == {}


async def test_recorded_events_cannot_be_changed_in_code(store: MetadataStore) -> None:
    event = await store.append("alpha", NewEvent("noted"))
    with pytest.raises(AttributeError):
        event.type = "forged"  # type: ignore[misc]


async def test_append_inside_the_callers_transaction(store: MetadataStore) -> None:
    async with store.engine.connect() as connection:
        await store.append("alpha", NewEvent("vanishes"), connection=connection)
        await connection.rollback()
    async with store.engine.begin() as connection:
        event = await store.append("alpha", NewEvent("stays"), connection=connection)
    assert event.version == 1
    assert await recorded(store) == [event]


# --- Versions and positions ---------------------------------------------------------------------


async def test_versions_have_no_holes_and_positions_increase(store: MetadataStore) -> None:
    async def live(name: str) -> None:
        session = store.session(name)
        for value in range(8):
            await session.set_metadata({"a": value})
            await outcomes(
                session.add_items([user("x"), user("y")]),
                session.delete_metadata(["a"], expected_version=0),  # is rejected
                store.append(name, NewEvent("noted", {"value": value})),
                session.pop_item(),
                session.delete_metadata(["missing"]),  # records nothing
            )
        await session.clear_session()

    names = [f"session {number}" for number in range(4)]
    await asyncio.gather(*map(live, names))
    events = await recorded(store)
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    assert positions[0] > 0
    for name in names:
        own = [event for event in events if event.stream_id == name]
        assert [event.version for event in own] == list(range(1, 8 * 4 + 2))
        assert Counter(event.type for event in own) == {
            "metadata_set": 8,
            "items_added": 8,
            "noted": 8,
            "item_popped": 8,
            "session_cleared": 1,
        }


async def test_calls_of_one_session_keep_their_order(session: MetadataSession) -> None:
    events = await asyncio.gather(*(session.set_metadata({"n": number}) for number in range(50)))
    assert [event.version for event in events if event] == list(range(1, 51))
    assert [entry.changes["n"].new for entry in await session.history()] == list(range(50))


async def test_every_added_item_is_named_by_its_own_event(store: MetadataStore) -> None:
    names = [f"session {number}" for number in range(6)]
    await asyncio.gather(
        *(
            store.session(name).add_items([user(f"{name} {turn} {n}") for n in range(turn + 1)])
            for turn in range(3)
            for name in names
        ),
        *(store.session(name).set_metadata({"a": 1}) for name in names),
    )
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT id, message_data FROM agent_messages"))
        texts = {row.id: row.message_data for row in rows}
    assert len(texts) == 6 * (1 + 2 + 3)
    for name in names:
        events = await recorded(store, stream=name, types=["items_added"])
        for turn, event in enumerate(events):
            contents = [texts[item_id] for item_id in event.data["item_ids"]]
            assert len(contents) == turn + 1
            for n, content in enumerate(contents):
                assert f'"{name} {turn} {n}"' in content


# --- Expected version ---------------------------------------------------------------------------


async def test_of_eight_racers_exactly_one_wins(store: MetadataStore) -> None:
    for version in range(3):
        writes = [
            store.session("alpha").set_metadata({"winner": n}, expected_version=version)
            if n % 2
            else store.append("alpha", NewEvent("won", {"winner": n}), expected_version=version)
            for n in range(8)
        ]
        results = await outcomes(*writes)
        conflicts = [error for error in results if isinstance(error, VersionConflict)]
        (winner,) = [event for event in results if isinstance(event, RecordedEvent)]
        assert len(conflicts) == 7
        assert winner.version == version + 1
        for conflict in conflicts:
            seen = (conflict.stream_id, conflict.expected, conflict.actual)
            assert seen == ("alpha", version, version + 1)
    assert [event.version for event in await recorded(store)] == [1, 2, 3]


WRITES: dict[str, Callable[..., Awaitable[Any]]] = {
    "set": lambda session, **options: session.set_metadata({"a": 2}, **options),
    "delete": lambda session, **options: session.delete_metadata(["a"], **options),
    "add": lambda session, **options: session.add_items([user("two")], **options),
    "pop": lambda session, **options: session.pop_item(**options),
    "clear": lambda session, **options: session.clear_session(**options),
}
each_write = pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))


@each_write
@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_conflict_changes_nothing(
    session: MetadataSession, write: Callable[..., Awaitable[Any]], expected: int
) -> None:
    await session.set_metadata({"a": 1})
    await session.add_items([user("one")])
    with pytest.raises(VersionConflict, match=r"at version 2, .* read the session again") as caught:
        await write(session, expected_version=expected)
    assert (caught.value.expected, caught.value.actual) == (expected, 2)
    assert await session.get_metadata() == {"a": 1}
    assert await session.get_items() == [user("one")]
    assert len(await session.history()) == 2
    await write(session, expected_version=2)
    assert len(await session.history()) == 3


async def test_a_new_stream_is_at_version_zero(store: MetadataStore) -> None:
    with pytest.raises(VersionConflict):
        await store.append("alpha", NewEvent("noted"), expected_version=1)
    assert (await store.append("alpha", NewEvent("noted"), expected_version=0)).version == 1


# --- Event ids ----------------------------------------------------------------------------------


@each_write
@pytest.mark.parametrize("together", [False, True], ids=["later", "in one batch"])
async def test_an_event_id_makes_a_retry_safe(
    session: MetadataSession, write: Callable[..., Awaitable[Any]], together: bool
) -> None:
    await session.set_metadata({"a": 1})
    await session.add_items([user("one"), user("more")])
    event_id = new_event_id()
    if together:
        results = await outcomes(*(write(session, event_id=event_id) for _ in range(3)))
    else:
        results = [(await outcomes(write(session, event_id=event_id)))[0] for _ in range(3)]
    first, *again = results
    if write is WRITES["pop"]:
        assert first == user("more")
        assert all(isinstance(error, ItemAlreadyPopped) for error in again)
        assert again[0].item_id == (await session.history())[-1].event.data["item_id"]
    else:
        assert isinstance(first, RecordedEvent)
        assert again == [first, first]
    assert [entry.event.event_id == event_id for entry in await session.history()] == [
        False,
        False,
        True,
    ]


async def test_a_retry_succeeds_though_others_have_written_since(store: MetadataStore) -> None:
    new = NewEvent("noted", {"a": [1, True]}, event_id=new_event_id())
    first = await store.append("alpha", new, expected_version=0)
    await store.append("alpha", NewEvent("noted"))
    assert await store.append("alpha", new, expected_version=0) == first
    assert len(await recorded(store)) == 2


async def test_an_event_id_may_be_spelled_in_any_way(session: MetadataSession) -> None:
    number = uuid.uuid4()
    spellings: list[str | uuid.UUID] = [
        number,
        str(number),
        str(number).upper(),
        number.hex,
        f"{{{number}}}",
    ]
    events = [await session.set_metadata({"a": 1}, event_id=spelling) for spelling in spellings]
    assert events == [events[0]] * 5
    assert events[0] is not None
    assert events[0].event_id == str(number)


async def test_streams_do_not_share_event_ids(store: MetadataStore) -> None:
    event_id = new_event_id()
    events = [
        await store.append(name, NewEvent("noted", event_id=event_id)) for name in ("alpha", "beta")
    ]
    assert await recorded(store) == events


OTHER_CHANGES: dict[str, Callable[[MetadataStore, str], Awaitable[Any]]] = {
    "other value": lambda s, i: s.session("alpha").set_metadata({"a": True}, event_id=i),
    "other key": lambda s, i: s.session("alpha").set_metadata({"b": 1}, event_id=i),
    "more keys": lambda s, i: s.session("alpha").set_metadata({"a": 1, "b": 1}, event_id=i),
    "delete": lambda s, i: s.session("alpha").delete_metadata(event_id=i),
    "add": lambda s, i: s.session("alpha").add_items([user("x")], event_id=i),
    "pop": lambda s, i: s.session("alpha").pop_item(event_id=i),
    "clear": lambda s, i: s.session("alpha").clear_session(event_id=i),
    "own": lambda s, i: s.append("alpha", NewEvent("noted", event_id=i)),
}


@pytest.mark.parametrize("change", OTHER_CHANGES.values(), ids=list(OTHER_CHANGES))
@pytest.mark.parametrize("together", [False, True], ids=["later", "in one batch"])
async def test_an_event_id_does_not_stand_for_another_change(
    store: MetadataStore, change: Callable[[MetadataStore, str], Awaitable[Any]], together: bool
) -> None:
    session, event_id = store.session("alpha"), new_event_id()
    first = session.set_metadata({"a": 1}, event_id=event_id)
    if together:
        _, error, neighbour = await outcomes(
            first, change(store, event_id), store.session("beta").set_metadata({"a": 1})
        )
        assert isinstance(neighbour, RecordedEvent)
    else:
        await first
        (error,) = await outcomes(change(store, event_id))
    assert isinstance(error, EventIdReused)
    assert (error.event_id, error.recorded_type) == (event_id, "metadata_set")
    assert await session.get_metadata() == {"a": 1}
    assert len(await recorded(store, stream="alpha")) == 1


@pytest.mark.parametrize(("old", "new"), [(1, True), (0, False), ([1, 2], [2, 1]), ("1", 1)])
async def test_an_event_id_does_not_stand_for_other_data(
    store: MetadataStore, old: Any, new: Any
) -> None:
    event_id = new_event_id()
    await store.append("alpha", NewEvent("noted", {"a": old}, event_id=event_id))
    with pytest.raises(EventIdReused):
        await store.append("alpha", NewEvent("noted", {"a": new}, event_id=event_id))


# --- Reading ------------------------------------------------------------------------------------


@pytest.fixture
async def events(store: MetadataStore) -> list[RecordedEvent]:
    for number in range(4):
        for name in ("alpha", "Alpha", "beta"):
            await store.append(name, NewEvent("noted", {"n": number}))
            await store.session(name).set_metadata({"n": number})
    return await recorded(store)


async def test_read_one_stream(store: MetadataStore, events: list[RecordedEvent]) -> None:
    alpha = await recorded(store, stream="alpha")
    assert alpha == [event for event in events if event.stream_id == "alpha"]
    assert [event.version for event in alpha] == list(range(1, 9))
    assert await recorded(store, stream="nobody") == []


async def test_read_all_with_filters(store: MetadataStore, events: list[RecordedEvent]) -> None:
    assert len(events) == 24
    middle = events[11].position
    assert await recorded(store, after=middle) == events[12:]
    assert await recorded(store, until=middle) == events[:12]
    assert await recorded(store, after=events[3].position, until=middle) == events[4:12]
    assert await recorded(store, after=events[-1].position) == []
    notes = [event for event in events if event.type == "noted"]
    assert await recorded(store, types=["noted"]) == notes
    assert await recorded(store, types={"noted", "metadata_set"}) == events
    assert await recorded(store, types=["note", "other"]) == []
    assert await recorded(store, types=[]) == []
    found = await recorded(store, types=["noted"], stream="beta", after=middle)
    assert found == [event for event in notes[6:] if event.stream_id == "beta"]


@pytest.mark.parametrize("size", [1, 5, 24])
async def test_read_all_goes_on_from_page_to_page(
    store: MetadataStore,
    events: list[RecordedEvent],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(log_module, "PAGE", size)
    assert await recorded(store) == events
    assert await recorded(store, types=["noted"]) == [e for e in events if e.type == "noted"]


async def test_going_on_from_the_last_position_finds_the_rest(store: MetadataStore) -> None:
    seen: list[RecordedEvent] = []
    for number in range(5):
        await store.append("alpha", NewEvent("noted", {"n": number}))
        seen += await recorded(store, after=seen[-1].position if seen else 0)
    assert seen == await recorded(store)
    assert [event.data["n"] for event in seen] == list(range(5))
    assert await store.horizon() >= seen[-1].position


async def test_an_empty_log(store: MetadataStore) -> None:
    assert await recorded(store) == []
    assert await store.horizon() == 0
