"""A session that is bound to a user: what is within reach is read, the rest is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    InvalidIdentifier,
    MetadataSession,
    MetadataStore,
    SessionNotFound,
    UserMismatch,
    UserNotFound,
)
from tests.support.helpers import contents, user, users

pytestmark = pytest.mark.each_dialect

Read = Callable[[MetadataSession], Awaitable[Any]]


async def snapshot(session: MetadataSession) -> Any:
    found = await session._get_compaction_snapshot(5)
    return found and (found.items, found.complete)


READS: dict[str, Read] = {
    "metadata": lambda session: session.get_metadata(),
    "metadata of keys": lambda session: session.get_metadata(["k", "gone"]),
    "metadata as of a version": lambda session: session.get_metadata(as_of=99),
    "history": lambda session: session.history(),
    "history of a key": lambda session: session.history("k"),
    "diff": lambda session: session.diff(0, 99),
    "items": lambda session: session.get_items(),
    "last items": lambda session: session.get_items(1),
    "compaction": snapshot,
}

every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


@pytest.fixture
async def filled(store: MetadataStore) -> MetadataStore:
    """The sessions ``own`` (alice's), ``foreign`` (bob's), ``unowned`` and ``orphan``."""
    for name, owner in {"own": "alice", "foreign": "bob", "unowned": None, "orphan": "eve"}.items():
        session = store.session(name, user_id=owner)
        await session.set_metadata({"k": name})
        await session.add_items(users(name, f"{name} 2"))
    await store.delete_user("eve")
    return store


WITHIN_REACH: dict[str, tuple[Callable[[MetadataStore, str], MetadataSession], set[str]]] = {
    "administrator": (
        lambda store, name: store.session(name),
        {"own", "foreign", "unowned", "orphan"},
    ),
    "claiming": (lambda store, name: store.session(name, user_id="alice"), {"own", "unowned"}),
    "strict": (lambda store, name: store.as_user("alice").session(name), {"own"}),
}


@every_read
@pytest.mark.parametrize("kind", WITHIN_REACH)
async def test_a_session_out_of_reach_reads_as_a_missing_one(
    filled: MetadataStore, kind: str, read: Read
) -> None:
    handle, within = WITHIN_REACH[kind]
    missing = await read(handle(filled, "missing"))
    names = ["own", "foreign", "unowned", "orphan"]
    # At once, so that look-ups of several callers are one statement.
    found = await asyncio.gather(*(read(handle(filled, name)) for name in names))
    expected = await asyncio.gather(*(read(filled.session(name)) for name in names))
    for name, ours, all_of_it in zip(names, found, expected, strict=True):
        assert all_of_it != missing
        assert ours == (all_of_it if name in within else missing), name


async def test_look_ups_of_different_users_do_not_mix(filled: MetadataStore) -> None:
    handles = [filled.session(name, user_id=who) for name in ("own", "foreign") for who in BOTH]
    handles += [filled.session("own"), filled.as_user("bob").session("unowned")]
    found = await asyncio.gather(*(each.get_metadata() for each in handles))
    assert found == [{"k": "own"}, {}, {}, {"k": "foreign"}, {"k": "own"}, {}]


BOTH = ("alice", "bob")


async def test_finding_is_limited_to_own_sessions(filled: MetadataStore) -> None:
    for name in ("own", "foreign", "unowned"):
        await filled.session(name).set_metadata({"same": 1})
    bound = filled.session("own", user_id="alice")
    assert await bound.find_sessions_by_metadata("same", 1) == ["own"]
    assert await filled.as_user("bob").find_sessions_by_metadata("same", 1) == ["foreign"]
    every = ["foreign", "own", "unowned"]
    assert await filled.find_sessions_by_metadata("same", 1) == every


async def test_events_of_a_user_are_those_of_own_sessions_and_of_the_user(
    filled: MetadataStore,
) -> None:
    await filled.user("alice").set_metadata({"name": "Alice"})
    seen = [event async for event in filled.as_user("alice").events()]
    assert {(event.stream_type, event.stream_id) for event in seen} == {
        ("session", "own"),
        ("user", "alice"),
    }
    every = [event async for event in filled.events()]
    assert seen == [event for event in every if event.stream_id in ("own", "alice")]
    assert [event async for event in filled.as_user("alice").events(stream="foreign")] == []


async def test_a_claim_is_made_by_the_first_write_and_outlives_clearing(
    store: MetadataStore,
) -> None:
    await store.session("s").set_metadata({"k": 1})
    alice, bob = (store.session("s", user_id=name) for name in BOTH)
    assert await bob.get_metadata() == {"k": 1}
    await alice.add_items(users("mine"))
    assert await bob.get_metadata() == {} == await bob.get_metadata(as_of=1)
    await alice.clear_session()
    with pytest.raises(SessionNotFound):
        await bob.add_items(users("his"))
    assert [entry.type for entry in await alice.history()] == [
        *("metadata_set", "user_assigned", "items_added", "session_cleared")
    ]


async def test_a_session_is_handed_over_with_all_that_is_in_it(filled: MetadataStore) -> None:
    mine = filled.session("own", user_id="alice")
    event = await mine.transfer("bob", with_history=True, actor="alice")
    assert event is not None
    assigned = {"user_id": "bob", "previous": "alice", "with_history": True, "since": 0}
    assert (event.type, event.data) == ("user_assigned", assigned)
    assert await mine.get_items() == []
    his = await MetadataSession.get_session("bob", "own", engine=filled.engine)
    assert his is not None
    assert contents(await his.get_items()) == ["own", "own 2"]
    assert await his.get_metadata(as_of=1) == await filled.session("own").get_metadata(as_of=1)
    with pytest.raises(SessionNotFound):
        await mine.transfer("alice")


async def test_sessions_of_a_deleted_user_are_the_administrators(filled: MetadataStore) -> None:
    event = await filled.delete_user("alice")
    assert event is not None
    assert event.data["sessions"] == ["own"]
    assert await filled.delete_user("alice") is None
    assert await filled.get_sessions_for_user("alice") == []
    claiming = filled.session("own", user_id="alice")
    assert await claiming.get_items() == []
    assert await filled.session("own").transfer("bob") is not None
    assert await filled.as_user("bob").session("own").get_items(1) == [user("own 2")]


async def test_a_session_is_made_for_a_user(engine: AsyncEngine) -> None:
    made = await MetadataSession.create_session("alice", engine=engine, create_tables=True)
    assert made.user_id == "alice"
    assert made.session_id[14] == "7"
    assert await made.get_sessions_for_user("alice") == [made.session_id]
    for owner, expected in {"alice": made.session_id, "bob": None}.items():
        found = await MetadataSession.get_session(owner, made.session_id, engine=engine)
        assert (found and found.session_id) == expected
    missing = await MetadataSession.get_session("alice", "missing", engine=engine)
    assert missing is None
    (listed,) = await MetadataSession.get_sessions("alice", engine=engine)
    await listed.add_items(users("a"))
    assert await made.get_items() == users("a")
    assert [e.session_id for e in await MetadataStore(engine).list_sessions()] == [made.session_id]


async def test_a_session_found_by_its_user_cannot_be_claimed_when_it_is_gone(
    store: MetadataStore,
) -> None:
    made = await store.create_session("alice")
    found = await store.get_session("alice", made.session_id)
    assert found is not None
    await store.delete_user("alice")
    with pytest.raises(SessionNotFound):
        await found.add_items(users("a"))


async def test_the_store_of_a_user_is_nobody_elses(store: MetadataStore) -> None:
    alice = store.as_user("alice")
    with pytest.raises(UserMismatch, match="leave user_id out"):
        alice.session("s", user_id="bob")
    with pytest.raises(UserNotFound):
        alice.user("bob")
    with pytest.raises(UserMismatch):
        await alice.create_session(user_id="bob")  # type: ignore[call-arg]
    for name in ("as_user", "delete_user", "database", "engine", "create_tables", "get_sessions"):
        assert not hasattr(alice, name)


@pytest.mark.parametrize("bad", ["", "a\0b", 7, "x" * 256])
async def test_a_user_id_is_checked(store: MetadataStore, bad: Any) -> None:
    for call in (
        lambda: store.session("s", user_id=bad),
        lambda: store.as_user(bad),
        lambda: store.user(bad),
    ):
        with pytest.raises(InvalidIdentifier, match="user id"):
            call()
    for make in (store.delete_user, store.get_sessions_for_user, store.session("s").transfer):
        with pytest.raises(InvalidIdentifier, match="user id"):
            await cast("Callable[[Any], Awaitable[Any]]", make)(bad)


async def test_without_a_user_everything_is_as_before(store: MetadataStore) -> None:
    session = store.session("s", user_id=None)
    assert session.user_id is None
    await session.set_metadata({"k": 1})
    assert [entry.type for entry in await session.history()] == ["metadata_set"]
