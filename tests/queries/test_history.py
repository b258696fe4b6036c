"""The past of a session: its events in order, its state at any point, and who did what."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text

from eventmeta import (
    MISSING,
    HistoryEntry,
    MetadataSession,
    MetadataStore,
    NewEvent,
    Position,
    RecordedEvent,
    ValueChange,
    acting_as,
)
from eventmeta.core import events
from tests.support.helpers import user


def changes(entries: list[HistoryEntry]) -> list[tuple[int, dict[str, tuple[Any, Any]]]]:
    return [
        (entry.version, {key: (change.old, change.new) for key, change in entry.changes.items()})
        for entry in entries
    ]


async def recorded(store: MetadataStore) -> list[RecordedEvent]:
    return [event async for event in store.events()]


@pytest.fixture
async def lived(store: MetadataStore) -> MetadataSession:
    """A session with a past of eight versions, beside another one's."""
    session, other = store.session("alpha"), store.session("beta")
    await session.set_metadata({"a": 1, "b": None})
    await other.set_metadata({"a": "other"})
    await session.set_metadata({"a": 2})
    await session.add_items([user("hello")])
    await session.delete_metadata(["b"])
    await other.delete_metadata()
    await session.set_metadata({"a": 2, "c": [1.0]})
    await session.delete_metadata()
    await session.set_metadata({"b": True})
    await session.clear_session()
    return session


LIVED: list[dict[str, Any]] = [
    {},
    {"a": 1, "b": None},
    {"a": 2, "b": None},
    {"a": 2, "b": None},
    {"a": 2},
    {"a": 2, "c": [1.0]},
    {},
    {"b": True},
    {},
]
"""The metadata of ``lived`` at each version."""


# --- History ------------------------------------------------------------------------------------


async def test_history_has_the_old_and_the_new_value_of_each_change(lived: MetadataSession) -> None:
    assert changes(await lived.history()) == [
        (1, {"a": (MISSING, 1), "b": (MISSING, None)}),
        (2, {"a": (1, 2)}),
        (3, {}),
        (4, {"b": (None, MISSING)}),
        (5, {"a": (2, 2), "c": (MISSING, [1.0])}),
        (6, {"a": (2, MISSING), "c": ([1.0], MISSING)}),
        (7, {"b": (MISSING, True)}),
        (8, {"b": (True, MISSING)}),
    ]


async def test_history_of_one_key(lived: MetadataSession) -> None:
    assert changes(await lived.history("b")) == [
        (1, {"b": (MISSING, None)}),
        (4, {"b": (None, MISSING)}),
        (7, {"b": (MISSING, True)}),
        (8, {"b": (True, MISSING)}),
    ]
    assert await lived.history("B") == []


@pytest.mark.parametrize("key", [None, "a", "b"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_history_in_pages_is_the_same(
    lived: MetadataSession, key: str | None, limit: int
) -> None:
    entries: list[HistoryEntry] = []
    while page := await lived.history(
        key, limit=limit, after=entries[-1].version if entries else None
    ):
        assert len(page) <= limit
        entries += page
    assert entries == await lived.history(key)


async def test_history_window(lived: MetadataSession) -> None:
    assert await lived.history(limit=0) == []
    assert await lived.history(after=8) == []
    assert await lived.history(after=99) == []
    assert [entry.version for entry in await lived.history(limit=99, after=6)] == [7, 8]


async def test_a_session_without_events_has_no_history(session: MetadataSession) -> None:
    assert await session.history() == []
    assert await session.get_metadata(as_of=5) == {}
    assert await session.diff(0, 5) == {}


async def test_entries_tell_what_who_and_when(session: MetadataSession) -> None:
    event = await session.set_metadata({"a": 1}, actor="bob")
    (entry,) = await session.history()
    assert entry.event == event
    assert (entry.version, entry.type, entry.actor) == (1, "metadata_set", "bob")
    assert entry.recorded_at == entry.event.recorded_at


async def test_an_event_of_the_apps_own_is_in_the_history_and_changes_nothing(
    store: MetadataStore, session: MetadataSession
) -> None:
    """Whatever it calls its data."""
    await session.set_metadata({"a": 1})
    mistakable: list[Any] = [[["a", "2"]], "a", 5, {"a": 1}, [{"a": 1}], [[["x"], None]], [["a"]]]
    for data in mistakable:
        await store.append("alpha", NewEvent("noted", {"changes": data}))
    await store.append("alpha", NewEvent("noted", {"deep": json.loads("[" * 60 + "]" * 60)}))
    await session.set_metadata({"a": 3})
    entries = await session.history()
    assert [entry.type for entry in entries] == ["metadata_set", *["noted"] * 8, "metadata_set"]
    assert [entry.event.data.get("changes") for entry in entries[1:8]] == mistakable
    assert changes(await session.history("a")) == [(1, {"a": (MISSING, 1)}), (10, {"a": (1, 3)})]
    assert await session.get_metadata(as_of=9) == {"a": 1}
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT version FROM agent_metadata_changes"))
        assert sorted(rows.scalars()) == [1, 10]


# --- As of --------------------------------------------------------------------------------------


async def test_as_of_a_version(lived: MetadataSession) -> None:
    for version, state in enumerate(LIVED):
        found = await lived.get_metadata(as_of=version)
        assert json.dumps(found) == json.dumps(state), version
    assert await lived.get_metadata(as_of=99) == LIVED[-1]


async def test_as_of_a_position(store: MetadataStore, lived: MetadataSession) -> None:
    for event in await recorded(store):
        version = max(
            entry.version
            for entry in await lived.history()
            if entry.event.position <= event.position
        )
        assert isinstance(event.position, Position)
        assert await lived.get_metadata(as_of=event.position) == LIVED[version]
        assert await lived.get_metadata(as_of=Position(event.position)) == LIVED[version]
    assert await lived.get_metadata(as_of=Position(0)) == {}


async def test_a_position_is_not_taken_for_a_version(store: MetadataStore) -> None:
    for value in range(5):
        await store.session("beta").set_metadata({"a": value})
    session = store.session("alpha")
    event = await session.set_metadata({"a": "first"})
    await session.set_metadata({"a": "second"})
    assert event is not None
    assert await session.get_metadata(as_of=event.position) == {"a": "first"}
    assert await session.get_metadata(as_of=int(event.position)) == {"a": "second"}


async def test_as_of_a_time(session: MetadataSession) -> None:
    for value in range(3):
        await session.set_metadata({"a": value})
        await asyncio.sleep(0.002)  # the clock moves on between the events
    times = [entry.recorded_at for entry in await session.history()]
    assert times == sorted(set(times))
    microsecond = timedelta(microseconds=1)
    for value, time in enumerate(times):
        before = {"a": value - 1} if value else {}
        assert await session.get_metadata(as_of=time - microsecond) == before
        assert await session.get_metadata(as_of=time) == {"a": value}
        for hours in (-11, 5.5, 14):
            elsewhere = time.astimezone(timezone(timedelta(hours=hours)))
            assert await session.get_metadata(as_of=elsewhere) == {"a": value}
    assert await session.get_metadata(as_of=datetime.now(UTC) + timedelta(days=1)) == {"a": 2}
    assert await session.get_metadata(as_of=datetime(1970, 1, 1, tzinfo=UTC)) == {}


async def test_as_of_with_keys(lived: MetadataSession) -> None:
    assert await lived.get_metadata(["b", "c"], as_of=1) == {"b": None, "c": None}
    found = await lived.get_metadata(["b", "c"], as_of=1, default=MISSING)
    assert found == {"b": None, "c": MISSING}


# --- Diff ---------------------------------------------------------------------------------------


async def test_diff(lived: MetadataSession) -> None:
    assert await lived.diff(1, 5) == {
        "a": ValueChange(1, 2),
        "b": ValueChange(None, MISSING),
        "c": ValueChange(MISSING, [1.0]),
    }
    assert await lived.diff(5, 1) == {
        "a": ValueChange(2, 1),
        "b": ValueChange(MISSING, None),
        "c": ValueChange([1.0], MISSING),
    }
    assert await lived.diff(0, 8) == {}
    assert await lived.diff(2, 3) == {}


async def test_diff_between_kinds_of_points(lived: MetadataSession) -> None:
    first = (await lived.history())[0].event
    now = datetime.now(UTC) + timedelta(minutes=1)
    assert await lived.diff(first.position, now) == {
        "a": ValueChange(1, MISSING),
        "b": ValueChange(None, MISSING),
    }


@pytest.mark.parametrize(
    ("old", "new", "different"),
    [
        (1, 1.0, False),
        ({"x": [1], "y": 0}, {"y": 0.0, "x": [1.0]}, False),
        (1, True, True),
        (0, False, True),
        (0, None, True),
        ("1", 1, True),
        ([1, 2], [2, 1], True),
        ("\u00e9", "e\u0301", True),
    ],
)
async def test_diff_compares_as_json(
    session: MetadataSession, old: Any, new: Any, different: bool
) -> None:
    await session.set_metadata({"a": old})
    await session.set_metadata({"a": new})
    assert await session.diff(1, 2) == ({"a": ValueChange(old, new)} if different else {})


# --- Actor and context --------------------------------------------------------------------------


async def test_every_write_takes_an_actor(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1}, actor="setter")
    await session.delete_metadata(actor="deleter")
    await session.add_items([user("hello"), user("there")], actor="adder")
    await session.pop_item(actor="popper")
    await session.clear_session(actor="clearer")
    actors = [entry.actor for entry in await session.history()]
    assert actors == ["setter", "deleter", "adder", "popper", "clearer"]


async def test_nobody_is_named_unless_said(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1})
    (entry,) = await session.history()
    assert (entry.actor, entry.event.context) == (None, {})


async def test_acting_as_nests_and_ends(session: MetadataSession) -> None:
    with acting_as("support:bob", reason="ticket 12", trace_id="t1"):
        await session.set_metadata({"a": 1})
        with acting_as("bot", reason="cleanup", run_id=7):
            await session.set_metadata({"a": 2})
            await session.set_metadata({"a": 3}, actor="explicit")
        await session.set_metadata({"a": 4})
    await session.set_metadata({"a": 5})
    inner = {"reason": "cleanup", "trace_id": "t1", "run_id": 7}
    outer = {"reason": "ticket 12", "trace_id": "t1"}
    assert [(entry.actor, entry.event.context) for entry in await session.history()] == [
        ("support:bob", outer),
        ("bot", inner),
        ("explicit", inner),
        ("support:bob", outer),
        (None, {}),
    ]


async def test_acting_as_ends_with_an_exception(session: MetadataSession) -> None:
    with pytest.raises(LookupError), acting_as("bob"):
        raise LookupError
    await session.set_metadata({"a": 1})
    assert (await session.history())[0].actor is None


async def test_tasks_inherit_the_actor_and_keep_their_own(store: MetadataStore) -> None:
    """Though all of them are committed by one writer, perhaps in one transaction."""

    async def write(name: str) -> None:
        with acting_as(name, own=name):
            await store.session(name).set_metadata({"a": 1})

    inherited = store.session("inherited")
    with acting_as("parent", common=True):
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(write(f"child {number}")) for number in range(5)
        ]
        tasks.append(asyncio.create_task(inherited.delete_metadata(["none"])))
        tasks.append(asyncio.create_task(inherited.set_metadata({"a": 1})))
    await store.session("outside").set_metadata({"a": 1})
    await asyncio.gather(*tasks)
    assert {event.stream_id: (event.actor, event.context) for event in await recorded(store)} == {
        **{
            f"child {number}": (f"child {number}", {"common": True, "own": f"child {number}"})
            for number in range(5)
        },
        "inherited": ("parent", {"common": True}),
        "outside": (None, {}),
    }


async def test_an_event_of_the_apps_own_adds_to_the_context(store: MetadataStore) -> None:
    with acting_as("bob", reason="outer", trace_id="t1"):
        event = await store.append("alpha", NewEvent("noted", context={"reason": "inner"}))
        named = await store.append("alpha", NewEvent("noted", actor="eve"))
    assert (event.actor, event.context) == ("bob", {"reason": "inner", "trace_id": "t1"})
    assert named.actor == "eve"
    assert await recorded(store) == [event, named]


# --- Time, clearing, vocabulary -----------------------------------------------------------------


async def test_times_are_aware_utc_of_now_and_never_go_back(store: MetadataStore) -> None:
    before = datetime.now(UTC)
    session = store.session("alpha")
    for value in range(20):
        await session.set_metadata({"a": value})
        await session.add_items([user("x")])
    await asyncio.gather(*(session.set_metadata({"b": value}) for value in range(20)))
    times = [event.recorded_at for event in await recorded(store)]
    assert len(times) == 60
    assert times == sorted(times)
    assert {time.tzinfo for time in times} == {UTC}
    margin = timedelta(seconds=1)  # a server has a clock of its own
    assert before - margin <= times[0]
    assert times[-1] <= datetime.now(UTC) + margin
    assert any(time.microsecond % 1000 for time in times)


async def test_clear_removes_items_and_metadata_and_keeps_the_past(
    session: MetadataSession,
) -> None:
    await session.set_metadata({"a": 1})
    await session.add_items([user("hello")])
    cleared = await session.clear_session()
    assert cleared is not None
    assert cleared.version == 3
    assert (await session.get_items(), await session.get_metadata()) == ([], {})
    assert await session.get_metadata(as_of=2) == {"a": 1}
    again = await session.set_metadata({"b": 2})
    assert again is not None
    assert again.version == 4
    assert changes(await session.history("a")) == [
        (1, {"a": (MISSING, 1)}),
        (3, {"a": (1, MISSING)}),
    ]


async def test_clear_can_keep_the_metadata(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1})
    await session.add_items([user("hello")])
    cleared = await session.clear_session(keep_metadata=True)
    assert cleared is not None
    assert (cleared.version, cleared.data["changes"]) == (3, [])
    assert (await session.get_items(), await session.get_metadata()) == ([], {"a": 1})
    assert await session.find_sessions_by_metadata("a", 1) == ["alpha"]
    assert await session.clear_session(keep_metadata=True) is None


async def test_clearing_nothing_records_nothing(session: MetadataSession) -> None:
    assert await session.clear_session() is None
    await session.set_metadata({"a": 1})
    await session.clear_session()
    assert await session.clear_session() is None
    assert [entry.version for entry in await session.history()] == [1, 2]


async def test_the_vocabulary_of_events(store: MetadataStore, session: MetadataSession) -> None:
    await session.set_metadata({"b": 1, "a": {"y": 1, "x": 2.0}})
    await session.delete_metadata()
    await session.add_items([user("secret one"), user("secret two"), user("secret three")])
    await session.pop_item()
    await session.set_metadata({"d": None, "c": 1})
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT id FROM agent_messages ORDER BY id"))
        kept = list(rows.scalars())
    await session.clear_session()
    events = await recorded(store)
    added = events[2].data["item_ids"]
    assert added[:2] == kept
    assert added == sorted(set(added))
    assert len(added) == 3
    assert [(event.type, event.data) for event in events] == [
        (
            "metadata_set",
            {"changes": [["b", "1"], ["a", '{"x":2.0,"y":1}', '{"x":2,"y":1}']]},
        ),
        ("metadata_deleted", {"changes": [["a", None], ["b", None]]}),
        ("items_added", {"item_ids": added}),
        ("item_popped", {"item_id": added[2]}),
        ("metadata_set", {"changes": [["d", "null"], ["c", "1"]]}),
        ("session_cleared", {"item_ids": kept, "changes": [["c", None], ["d", None]]}),
    ]
    async with store.engine.connect() as connection:
        texts = (await connection.execute(text("SELECT data FROM agent_events"))).scalars().all()
    assert not any("secret" in data for data in texts)


async def test_events_have_ids_of_version_seven(store: MetadataStore) -> None:
    await store.session("alpha").set_metadata({"a": 1})
    await store.session("alpha").add_items([user("x")])
    ids = [uuid.UUID(event.event_id) for event in await recorded(store)]
    assert [number.version for number in ids] == [7, 7]
    assert {number.variant for number in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 2


# --- Older formats ------------------------------------------------------------------------------


async def test_an_event_of_an_older_format_is_read_in_the_newest(
    store: MetadataStore, session: MetadataSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log keeps what was written; steps lead from there to the newest."""

    def splits_the_name(data: dict[str, Any]) -> dict[str, Any]:
        first, last = data["name"].split()
        return {"v": 2, "first": first, "last": last}

    def nests_it(data: dict[str, Any]) -> dict[str, Any]:
        return {"v": 3, "name": {"first": data["first"], "last": data["last"]}}

    newest = {"v": 3, "name": {"first": "Ada", "last": "King"}}
    for data in ({"name": "Ada King"}, {"v": 2, "first": "Ada", "last": "King"}, newest):
        await store.append("alpha", NewEvent("greeted", data))
    await store.append("alpha", NewEvent("left", {"name": "Ada King"}))
    monkeypatch.setitem(events.UPCASTERS, "greeted", [splits_the_name, nests_it])
    expected = [newest, newest, newest, {"name": "Ada King"}]
    assert [event.data for event in await recorded(store)] == expected
    assert [event.data async for event in store.events(stream="alpha")] == expected
    assert [entry.event.data for entry in await session.history()] == expected
    async with store.engine.connect() as connection:
        stored = await connection.scalars(
            text("SELECT data FROM agent_events WHERE type = 'greeted' ORDER BY version")
        )
        assert [json.loads(data).get("v") for data in stored] == [None, 2, 3]
