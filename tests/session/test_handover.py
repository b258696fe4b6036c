"""What the new owner of a session sees: all that is there, and of the past what came since then."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

import pytest

from eventmeta import (
    MISSING,
    InvalidInput,
    MetadataSession,
    MetadataStore,
    NewEvent,
    RecordedEvent,
    UserStore,
    ValueChange,
)
from eventmeta.core.events import USAGE_RECORDED
from eventmeta.dialects.statement import Program, Query
from eventmeta.log.commands import Append, EventData, TransferSession, assignment
from tests.dialects.test_log_storage import ANALYZE, SCANS, explain
from tests.support.acting import ADMIN, submit
from tests.support.helpers import users

pytestmark = pytest.mark.each_dialect

USAGE: dict[str, Any] = {
    **dict.fromkeys(("response_id", "model", "agent", "user_id", "trace_id", "span_id")),
    "run_id": "r",
    "user_message_id": None,
    "requests": 1,
    "input_tokens": 7,
    "output_tokens": 0,
    "total_tokens": 7,
    **dict.fromkeys(("input_tokens_details", "output_tokens_details"), "{}"),
}


class Given(NamedTuple):
    """A session of alice's with a past, and how it came to bob."""

    store: MetadataStore
    before: RecordedEvent
    handed: RecordedEvent

    @property
    def bob(self) -> UserStore:
        return self.store.as_user("bob")

    @property
    def his(self) -> MetadataSession:
        return self.bob.session("s")


async def with_a_past(store: MetadataStore, name: str = "s") -> RecordedEvent:
    """Metadata that was changed and deleted, items that are gone, usage, an event of the app's."""
    hers = store.session(name, user_id="alice")
    await hers.set_metadata({"title": "secret", "salary": 7, "kept": 1})
    await hers.add_items(users("old", "older", "secret"))
    await hers.pop_item()
    await hers.delete_metadata(["salary"])
    await submit(store, ADMIN.session(Append, name, fact=EventData(USAGE_RECORDED, USAGE)))
    await store.append(name, NewEvent("noted", {"secret": True}))
    before = await hers.set_metadata({"title": "harmless"})
    assert before is not None
    return before


@pytest.fixture
async def given(structured: MetadataStore) -> Given:
    before = await with_a_past(structured)
    handed = await structured.session("s", user_id="alice").transfer("bob")
    assert handed is not None
    await structured.session("s", user_id="bob").set_metadata({"title": "his"})
    return Given(structured, before, handed)


async def listed(store: MetadataStore | UserStore, **options: Any) -> list[RecordedEvent]:
    return [event async for event in store.events(**options)]


async def test_items_and_metadata_are_handed_over_as_they_are(given: Given) -> None:
    assert await given.his.get_items() == users("old", "older")
    assert await given.his.get_metadata() == {"kept": 1, "title": "his"}
    assert [turn.content for turn in await given.his.get_turns()] == ["old", "older"]
    assert await given.bob.find_sessions_by_metadata("kept", 1) == ["s"]
    assert await given.bob.get_session("s") is not None


async def test_the_first_that_is_seen_is_the_transfer(given: Given) -> None:
    first, second = await given.his.history()
    assert first.event == given.handed
    assert (first.changes, second.changes) == ({}, {"title": ValueChange("harmless", "his")})
    assert second.version == given.handed.version + 1
    assert [e.version for e in await given.his.history(limit=1)] == [given.handed.version]
    assert [e.version for e in await given.his.history(after=3)] == [first.version, second.version]
    assert await given.his.history("title") == [second]
    assert await given.his.history("salary") == []


def points(event: RecordedEvent) -> tuple[Any, ...]:
    return event.version, event.position, event.recorded_at


async def test_as_of_before_the_transfer_there_is_no_session(given: Given) -> None:
    for then in points(given.before):
        assert await given.his.get_metadata(as_of=then) == {}
        assert await given.his.get_metadata(["title"], as_of=then) == {"title": None}
    for then in points(given.before)[1:]:
        assert await given.bob.find_sessions_by_metadata("kept", 1, as_of=then) == []
    handed = {"kept": 1, "title": "harmless"}
    for then in points(given.handed):
        assert await given.his.get_metadata(as_of=then) == handed
        assert await given.his.get_metadata(["salary"], as_of=then) == {"salary": None}
    for then in points(given.handed)[1:]:
        assert await given.bob.find_sessions_by_metadata("title", "harmless", as_of=then) == ["s"]
    appeared = await given.his.diff(given.before.version, given.handed.version)
    assert appeared == {key: ValueChange(MISSING, value) for key, value in handed.items()}
    changed = await given.his.diff(given.handed.version, 99)
    assert changed == {"title": ValueChange("harmless", "his")}


async def test_the_feed_begins_with_the_transfer(given: Given) -> None:
    for options in ({}, {"stream": "s"}, {"after": 1}, {"types": ["user_assigned", "noted"]}):
        seen = [event for event in await listed(given.bob, **options) if event.stream_id == "s"]
        assert seen[0] == given.handed, options
        assert all(event.version >= given.handed.version for event in seen)
    own = [event for event in await listed(given.bob) if event.stream_type == "user"]
    assert [event.type for event in own] == ["user_created"]


async def test_what_runs_used_before_is_not_told(given: Given) -> None:
    assert sum(group.input_tokens for group in await given.bob.get_usage("session")) == 0
    assert (await given.his.get_usage()).input_tokens == 0
    await submit(given.store, ADMIN.session(Append, "s", fact=EventData(USAGE_RECORDED, USAGE)))
    (group,) = await given.bob.get_usage("session")
    assert (group.key, group.input_tokens) == ("s", 7)
    assert (await given.his.get_usage()).input_tokens == 7
    (every,) = await given.store.get_usage("session")
    assert every.input_tokens == (await given.store.session("s").get_usage()).input_tokens == 14


async def past_of(session: MetadataSession) -> Any:
    """Everything that a handle is told of the past, by each way there is."""
    versions = range((await MetadataSession("s", engine=session.engine).history())[-1].version + 1)
    return (
        await session.history(),
        await session.history("salary"),
        [await session.get_metadata(as_of=version) for version in versions],
        await session.diff(1, 4),
    )


async def test_the_administrator_sees_all(given: Given) -> None:
    admin = given.store.session("s")
    types = [entry.type for entry in await admin.history()]
    assert types[:3] == ["user_assigned", "metadata_set", "items_added"]
    assert (await admin.get_metadata(as_of=2))["salary"] == 7
    assert await given.store.find_sessions_by_metadata("kept", 1, as_of=given.before.position)
    assert len(await listed(given.store, stream="s")) == len(types)


@pytest.mark.parametrize("by", ["alice", None])
async def test_history_can_be_handed_over_too(store: MetadataStore, by: str | None) -> None:
    before = await with_a_past(store)
    handed = await store.session("s", user_id=by).transfer("bob", with_history=True)
    assert handed is not None
    assert handed.data["with_history"] is True
    his, bob = store.as_user("bob").session("s"), store.as_user("bob")
    assert await past_of(his) == await past_of(store.session("s"))
    assert await bob.find_sessions_by_metadata("kept", 1, as_of=before.position) == ["s"]
    assert await listed(bob, stream="s") == await listed(store, stream="s")


Handing = tuple[str | None, str, bool]
CHAINS: dict[str, tuple[list[Handing], int]] = {
    "the last one counts": ([("alice", "bob", False), ("bob", "carol", False)], -1),
    "back to who had it": ([("alice", "bob", False), ("bob", "alice", False)], -1),
    "what is not seen is not handed on": (
        [("alice", "bob", False), ("bob", "carol", True)],
        0,
    ),
    "to oneself by way of another": (
        [("alice", "bob", False), ("bob", "carol", True), ("carol", "bob", True)],
        0,
    ),
    "the administrator sees all, so hands on all": (
        [("alice", "bob", False), (None, "carol", True)],
        -2,
    ),
    "without history after with it": ([("alice", "bob", True), ("bob", "carol", False)], -1),
    "of a deleted user": (
        [("alice", "bob", False), (None, "-", False), (None, "carol", False)],
        -1,
    ),
    "of a deleted user, with history": ([(None, "-", False), (None, "carol", True)], -2),
}


@pytest.mark.parametrize("chain", CHAINS)
async def test_a_chain_of_transfers(store: MetadataStore, chain: str) -> None:
    handings, bound = CHAINS[chain]
    await with_a_past(store)
    events: list[RecordedEvent | None] = []
    owner = "alice"
    for by, to, with_history in handings:
        if to == "-":
            await store.delete_user(owner)
            events.append(None)
            continue
        session = store.session("s", user_id=by)
        events.append(await session.transfer(to, with_history=with_history))
        await store.session("s").set_metadata({"title": to})
        owner = to
    every = [entry.version for entry in await store.session("s").history()]
    begins = 1 if bound == -2 else cast(RecordedEvent, events[bound]).version
    seen = await store.as_user(owner).session("s").history()
    assert [entry.version for entry in seen] == [v for v in every if v >= begins]


async def test_two_transfers_in_one_transaction(store: MetadataStore) -> None:
    await with_a_past(store)
    async with store.engine.begin() as connection:
        alice, bob = (store.session("s", user_id=name) for name in ("alice", "bob"))
        first = await alice.transfer("bob", connection=connection)
        await bob.transfer("carol", with_history=True, connection=connection)
    assert first is not None
    seen = await store.as_user("carol").session("s").history()
    assert [entry.version for entry in seen] == [first.version, first.version + 1]


async def test_a_claim_gives_all(store: MetadataStore) -> None:
    await store.session("s").set_metadata({"k": 1})
    bob = store.session("s", user_id="bob")
    await bob.set_metadata({"k": 2})
    assert [entry.version for entry in await bob.history()] == [1, 2, 3]
    assert await bob.get_metadata(as_of=1) == {"k": 1}


async def test_what_the_administrator_gives_is_handed_over_as_well(store: MetadataStore) -> None:
    await store.session("s").set_metadata({"k": 1})
    await store.session("s").transfer("bob")
    assert [e.type for e in await store.as_user("bob").session("s").history()] == ["user_assigned"]


async def test_older_transfers_stay_what_they_were(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say nothing of history: whoever got a session by one still sees all of it."""

    def as_it_was(self: TransferSession, sql: Any) -> Program[EventData | None]:
        yield from ()
        return assignment(self.to_user, self.owner)

    await with_a_past(store)
    monkeypatch.setattr(TransferSession, "execute", as_it_was)
    handed = await store.session("s", user_id="alice").transfer("bob")
    assert handed is not None
    assert handed.data == {"user_id": "bob", "previous": "alice"}
    bob = store.as_user("bob")
    assert await past_of(bob.session("s")) == await past_of(store.session("s"))
    assert await listed(bob, stream="s") == await listed(store, stream="s")


async def test_it_is_the_session_that_is_given_no_other(store: MetadataStore) -> None:
    for name in ("s", "S", "other"):
        await with_a_past(store, name)
    await store.session("s", user_id="alice").transfer("bob")
    alice = store.as_user("alice")
    for name in ("S", "other"):
        assert len(await alice.session(name).history()) == 8
    assert {event.stream_id for event in await listed(alice)} == {"S", "other", "alice"}


@pytest.mark.parametrize("bad", ["no", 0, None])
async def test_with_history_is_checked(store: MetadataStore, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="with_history"):
        await store.session("s").transfer("bob", with_history=bad)


# --- Plans ----------------------------------------------------------------------------------------

Read = Callable[[UserStore], Awaitable[Any]]
READS: dict[str, Read] = {
    "history": lambda bob: bob.session("s").history(),
    "history of a key": lambda bob: bob.session("s").history("title"),
    "as of a version": lambda bob: bob.session("s").get_metadata(as_of=9),
    "the feed of a session": lambda bob: anext(cast(Any, bob.events(stream="s"))),
    "usage": lambda bob: bob.session("s").get_usage(),
    "find as of": lambda bob: bob.find_sessions_by_metadata("k", 1, as_of=99),
}
THROUGH_THE_LOG = "find as of"


async def test_where_a_session_begins_is_looked_up_by_key(
    structured: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_a_past(structured)
    for n in range(200):
        await structured.session(f"s{n}", user_id=f"u{n % 40}").set_metadata({"k": 1})
        await submit(
            structured, ADMIN.session(Append, f"s{n}", fact=EventData(USAGE_RECORDED, USAGE))
        )
        if n % 4 == 0:
            await structured.session(f"s{n}").transfer("bob")
    handed = await structured.session("s").transfer("bob")
    assert handed is not None
    bob = structured.as_user("bob")
    feed = bob.events(handed.position - 5)
    reads: dict[str, Read] = {**READS, "the feed": lambda _: anext(cast(Any, feed))}
    position, moment = handed.position, handed.recorded_at
    reads["as of a position"] = lambda bob: bob.session("s").get_metadata(as_of=position)
    reads["as of a time"] = lambda bob: bob.session("s").get_metadata(as_of=moment)
    sent: list[Query] = []
    send = structured.log.database.dialect.read

    async def watched(queries: Sequence[Query]) -> Any:
        sent.extend(queries)
        return await send(queries)

    monkeypatch.setattr(structured.log.database.dialect, "read", watched)
    async with structured.engine.begin() as connection:
        await connection.exec_driver_sql(ANALYZED[structured.engine.dialect.name])
    for name, read in reads.items():
        await cast(Any, read)(bob)
        plan = await explain(structured.engine, sent[-1].statement.sql, sent[-1].values)
        assert re.search("handovers", plan), f"{name}: {plan}"
        if name == THROUGH_THE_LOG:
            plan = "\n".join(line for line in plan.splitlines() if "agent_events" not in line)
        assert not re.search(f"{SCANS}|{OF_ALIASES}", plan), f"{name}: {plan}"


ANALYZED = {**ANALYZE, "mysql": f"{ANALYZE['mysql']}, agent_streams, agent_usage"}
OF_ALIASES = r"SCAN (handovers|handed|heads)|'(handovers|handed|heads)', 'ALL'"
