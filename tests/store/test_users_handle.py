"""What is known about a user: metadata with a history, like that of a session."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from eventmeta import (
    MISSING,
    InvalidInput,
    MetadataStore,
    NewEvent,
    Position,
    User,
    UserNotFound,
    ValueChange,
    ValueTooLarge,
    VersionConflict,
    new_event_id,
)

pytestmark = pytest.mark.two_dialects


@pytest.fixture
def alice(store: MetadataStore) -> User:
    return store.user("alice")


async def test_a_missing_user_has_no_metadata(alice: User) -> None:
    assert await alice.get_metadata() == {} == await alice.get_metadata(as_of=3)
    assert await alice.get_metadata(["k"], default=MISSING) == {"k": MISSING}
    assert await alice.history() == []
    assert await alice.delete_metadata() is None
    assert await alice.set_metadata({}) is None


async def test_metadata_is_merged_and_removed(alice: User) -> None:
    await alice.set_metadata({"name": "Alice", "tags": ["a", 1.0], "none": None})
    await alice.set_metadata({"name": "Alice B.", "big": 2**60})
    assert await alice.get_metadata() == {
        "big": 2**60,
        "name": "Alice B.",
        "none": None,
        "tags": ["a", 1.0],
    }
    assert await alice.get_metadata(["none", "gone"], default=0) == {"none": None, "gone": 0}
    event = await alice.delete_metadata(["big", "gone"])
    assert event is not None
    assert event.data["changes"] == [["big", None]]
    assert await alice.delete_metadata(["big"]) is None
    await alice.delete_metadata()
    assert await alice.get_metadata() == {}


async def test_the_past_of_a_user(alice: User) -> None:
    first = await alice.set_metadata({"k": 1, "j": True}, actor="ann")
    second = await alice.set_metadata({"k": 2})
    await alice.delete_metadata(["k"])
    assert first is not None
    assert second is not None
    assert await alice.get_metadata(as_of=first.version) == {"j": True, "k": 1}
    assert await alice.get_metadata(["k"], as_of=Position(second.position)) == {"k": 2}
    assert await alice.get_metadata(as_of=second.recorded_at) in ({"j": True, "k": 2}, {"j": True})
    entries = await alice.history()
    assert [entry.type for entry in entries] == [
        *("user_created", "metadata_set", "metadata_set", "metadata_deleted")
    ]
    assert entries[1].actor == "ann"
    of_key = [entry.changes for entry in await alice.history("k")]
    assert of_key == [
        {"k": ValueChange(MISSING, 1)},
        {"k": ValueChange(1, 2)},
        {"k": ValueChange(2, MISSING)},
    ]
    assert await alice.history(limit=1, after=2) == [entries[2]]
    assert await alice.diff(first.version, second.version) == {"k": ValueChange(1, 2)}


async def test_deleting_a_user_is_part_of_the_past(store: MetadataStore, alice: User) -> None:
    await alice.set_metadata({"k": 1})
    await store.delete_user("alice")
    assert await alice.get_metadata() == {}
    assert await alice.get_metadata(as_of=2) == {"k": 1}
    assert [entry.changes["k"].new for entry in await alice.history("k")] == [1, MISSING]
    await alice.set_metadata({"j": 2})
    assert await alice.get_metadata() == {"j": 2}


async def test_writes_take_the_options_of_all_writes(store: MetadataStore, alice: User) -> None:
    event_id = new_event_id()
    first = await alice.set_metadata({"k": 1}, event_id=event_id)
    assert await alice.set_metadata({"k": 1}, event_id=event_id) == first
    with pytest.raises(VersionConflict):
        await alice.set_metadata({"k": 2}, expected_version=1)
    async with store.engine.connect() as connection:
        await alice.set_metadata({"k": 3}, connection=connection)
        await connection.rollback()
    assert await alice.get_metadata() == {"k": 1}


@pytest.mark.parametrize("bad", [{"": 1}, {"k": float("nan")}, {7: 1}, {"k": {1, 2}}], ids=repr)
async def test_metadata_of_a_user_is_checked(alice: User, bad: Any) -> None:
    with pytest.raises(InvalidInput):
        await alice.set_metadata(bad)
    assert await alice.history() == []


async def test_all_that_is_known_about_a_user_is_limited(store: MetadataStore) -> None:
    small = MetadataStore(store.engine, max_value_bytes=100).user("alice")
    await small.set_metadata({"a": "x" * 60})
    with pytest.raises(ValueTooLarge):
        await small.set_metadata({"b": "x" * 60})
    assert list(await small.get_metadata()) == ["a"]


async def test_a_session_of_the_same_name_is_something_else(
    store: MetadataStore, alice: User
) -> None:
    await alice.set_metadata({"k": "user"})
    session = store.session("alice", user_id="alice")
    await session.set_metadata({"k": "session"})
    assert await alice.get_metadata() == {"k": "user"}
    assert await session.get_metadata() == {"k": "session"}
    assert [entry.type for entry in await alice.history()] == ["user_created", "metadata_set"]
    with pytest.raises(InvalidInput):
        await store.append("alice", NewEvent("user_deleted"))


async def test_a_user_reads_only_of_oneself(store: MetadataStore, alice: User) -> None:
    await alice.set_metadata({"k": 1})
    await store.user("bob").set_metadata({"k": "bob's"})
    for handle in (store.as_user("alice").user(), store.as_user("alice").user("alice")):
        assert await handle.get_metadata() == {"k": 1}
    errors = []
    for name in ("bob", "ben"):
        with pytest.raises(UserNotFound) as caught:
            store.as_user("alice").user(name)
        errors.append(str(caught.value).replace(name, "…"))
    assert errors[0] == errors[1]


async def test_the_table_is_as_it_was_proposed_upstream(store: MetadataStore, alice: User) -> None:
    await alice.set_metadata({"b": 1, "a": [True]})
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT user_id, metadata FROM agent_users"))
        assert [tuple(row) for row in rows] == [("alice", '{"a":[true],"b":1}')]
