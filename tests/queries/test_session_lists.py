"""Lists of sessions: their order, and pages of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import text

from eventmeta import InvalidInput, MetadataSession, MetadataStore, SessionEntry
from tests.dialects.test_log_storage import SCANS, explain
from tests.support.helpers import users

pytestmark = pytest.mark.each_dialect

SAME = datetime.fromisoformat("2026-01-02 03:04:05")


async def at(store: MetadataStore, moment: datetime, *session_ids: str) -> None:
    sessions = store.log.database.tables.sessions
    async with store.engine.begin() as connection:
        for session_id in session_ids:
            await connection.execute(
                sessions.update()
                .where(sessions.c.session_id == session_id)
                .values(updated_at=moment)
            )


async def test_the_latest_change_comes_first(store: MetadataStore) -> None:
    for number in range(5):
        await store.session(f"s{number}", user_id="alice").add_items(users("a"))
        await at(store, SAME.replace(second=(number * 3) % 5), f"s{number}")
    await store.session("other", user_id="bob").add_items(users("b"))
    order = ["s3", "s1", "s4", "s2", "s0"]
    session = store.session("s0", user_id="alice")
    assert await session.get_sessions_for_user("alice") == order
    assert await session.get_sessions_for_user("alice", 2) == order[:2]
    assert await session.get_sessions_for_user("alice", limit=2, offset=2) == order[2:4]
    assert await session.get_sessions_for_user("alice", offset=3) == order[3:]
    assert await session.get_sessions_for_user("bob") == []
    assert await store.session("any").get_sessions_for_user("bob") == ["other"]
    found = await MetadataSession.get_sessions("alice", 2, 1, engine=store.engine)
    assert [(each.session_id, each.user_id) for each in found] == [("s1", "alice"), ("s4", "alice")]


async def test_pages_of_sessions_that_changed_at_one_moment(store: MetadataStore) -> None:
    """Each comes exactly once, though some change and some are made while the list is read."""
    names = [f"s{number:03}" for number in range(300)]
    for name in names:
        await store.session(name, user_id="alice").set_metadata({"k": 1})
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE agent_sessions SET updated_at = CURRENT_TIMESTAMP"))
    alice = store.as_user("alice")
    seen: list[SessionEntry] = []
    while page := await alice.list_sessions(limit=70, after=seen[-1] if seen else None):
        seen += page
        await store.session(f"new {len(seen)}", user_id="alice").add_items(users("a"))
        await at(store, SAME.replace(year=2037), f"new {len(seen)}")
        assert len(seen) <= len(names)
    assert [entry.session_id for entry in seen] == names[::-1]
    assert {entry.user_id for entry in seen} == {"alice"}
    with pytest.raises(AttributeError):
        cast(Any, seen[0]).user_id = "bob"


async def test_a_page_goes_on_whoever_wrote_the_time(store: MetadataStore) -> None:
    """SQLite has no type for times: a database sees 3:04:05 and 3:04:05.000000 as two texts."""
    for name in ("a", "b", "c", "d"):
        await store.session(name).set_metadata({"k": 1})
    await at(store, SAME, "a", "c")
    async with store.engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE agent_sessions SET updated_at = '2026-01-02 03:04:05' "
                "WHERE session_id IN ('b', 'd')"
            )
        )
    seen: list[SessionEntry] = []
    while page := await store.list_sessions(limit=1, after=seen[-1] if seen else None):
        seen += page
        assert len(seen) <= 4
    assert [entry.session_id for entry in seen] == ["d", "c", "b", "a"]
    assert {entry.updated_at for entry in seen} == {SAME}


async def test_the_administrator_lists_all_or_those_of_a_user(store: MetadataStore) -> None:
    for name, owner in {"a": "alice", "b": "bob", "n": None}.items():
        await store.session(name, user_id=owner).set_metadata({"k": 1})
    assert {(e.session_id, e.user_id) for e in await store.list_sessions()} == {
        ("a", "alice"),
        ("b", "bob"),
        ("n", None),
    }
    assert [entry.session_id for entry in await store.list_sessions("bob")] == ["b"]
    assert await store.list_sessions("nobody") == []


@pytest.mark.parametrize(
    "bad",
    [
        *({"limit": -1}, {"limit": "3"}, {"after": "s1"}, {"after": 7}),
        {"after": SessionEntry("s1", None, SAME, cast(Any, "yesterday"))},
        {"after": SessionEntry("s1", None, SAME, SAME.replace(tzinfo=UTC))},
        {"after": SessionEntry(cast(Any, 7), None, SAME, SAME)},
    ],
    ids=str,
)
async def test_a_page_is_checked(store: MetadataStore, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        await store.list_sessions(**bad)


async def test_sessions_of_a_user_are_found_by_index(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        owner = "alice" if number % 40 == 0 else f"u{number}"
        await store.session(f"s{number}", user_id=owner).set_metadata({"state": 1})
    sent: list[tuple[str, Any]] = []
    fetch = store.log.database.group_read

    async def watched(read: Any, *limits: Any, **request: Any) -> Any:
        query = read.query([request]) if request else read
        sent.append((query.statement.sql, query.values))
        return await fetch(read, *limits, **request)

    monkeypatch.setattr(store.log.database, "group_read", watched)
    alice = store.as_user("alice")
    entries = await alice.list_sessions(limit=2)
    await alice.list_sessions(limit=2, after=entries[-1])
    await alice.get_session("s40")
    for session in (alice.session("s40"), store.session("s40", user_id="alice")):
        for read in (session.get_items, session.get_metadata, session.history):
            await read()
        await session.get_items(3)
        await session.get_metadata(["state"])
        await session.get_metadata(as_of=1)
        await session.find_sessions_by_metadata("state", 1)
    assert len(sent) == 17
    for sql, values in sent:
        plan = await explain(store.engine, sql, values)
        assert not re.search(SCANS, plan), f"{sql}: {plan}"
        assert re.search("agent_streams", plan) or "heads" in plan, f"{sql}: {plan}"
