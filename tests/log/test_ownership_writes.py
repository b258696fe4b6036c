"""Writing on behalf of users: claims, transfers, and that nobody writes what is another's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    EventIdReused,
    MetadataStore,
    SessionNotFound,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from eventmeta.dialects.failure import Failure
from tests.support.acting import (
    ADMIN,
    ALICE,
    BOB,
    Actor,
    events,
    owner,
    select,
    submit,
    together,
    types,
)
from tests.support.acting import user_ids as users_of
from tests.support.faults import cancel_everywhere
from tests.support.helpers import count_transactions

WRITES = {
    "add": lambda actor, session_id: actor.add(session_id),
    "set": lambda actor, session_id: actor.set(session_id, {"k": 1}),
    "note": lambda actor, session_id: actor.note(session_id),
    "replace": lambda actor, session_id: actor.replace(session_id, "{}"),
}
"""They record something in any session."""

REMOVALS = {
    "pop": lambda actor, session_id: actor.pop(session_id),
    "clear": lambda actor, session_id: actor.clear(session_id),
    "delete": lambda actor, session_id: actor.delete(session_id),
    "replace what is gone": lambda actor, session_id: actor.replace(
        session_id, "{}", expected=[(1, "{}")]
    ),
}
"""They do nothing where there is nothing."""

each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
each_removal = pytest.mark.parametrize("removal", REMOVALS.values(), ids=REMOVALS)
ALICE_OWN = Actor("alice", claims=False)


# --- Claims -------------------------------------------------------------------------------------


@each_write
@pytest.mark.parametrize("new", [True, False], ids=["new", "unowned"])
async def test_the_first_write_claims(store: MetadataStore, write: Any, new: bool) -> None:
    before = [] if new else [await submit(store, ADMIN.add("s"))]
    event = await submit(store, write(ALICE, "s"))
    *_, assigned, own = await events(store, "s")
    assert own == event
    assert (assigned.type, assigned.version) == ("user_assigned", len(before) + 1)
    assert assigned.data == {"user_id": "alice", "previous": None}
    assert assigned.actor == event.actor == "alice"
    assert await owner(store, "s") == "alice"
    assert await types(store, "alice", "user") == ["user_created"]
    assert await users_of(store) == ["alice"]


async def test_only_the_first_write_claims(store: MetadataStore) -> None:
    for session_id in ("s", "s", "t"):
        await submit(store, ALICE.add(session_id))
    await submit(store, ALICE.pop("s"))
    assert await types(store, "s") == ["user_assigned", "items_added", "items_added", "item_popped"]
    assert await types(store, "alice", "user") == ["user_created"]


@each_removal
async def test_removing_nothing_claims_nothing(store: MetadataStore, removal: Any) -> None:
    assert await submit(store, removal(ALICE, "s")) is None
    assert await owner(store, "s") is None
    assert await users_of(store) == []
    assert [found async for found in store.events()] == []


async def test_removing_something_claims(store: MetadataStore) -> None:
    for session_id in ("pop", "clear", "delete"):
        await submit(store, ADMIN.add(session_id))
        await submit(store, ADMIN.set(session_id, {"k": 1}))
        assert await submit(store, REMOVALS[session_id](ALICE, session_id))
        assert (await types(store, session_id))[2] == "user_assigned"
        assert await owner(store, session_id) == "alice"


async def test_the_administrator_claims_nothing(store: MetadataStore) -> None:
    await submit(store, ADMIN.add("s"))
    await submit(store, ALICE.add("t"))
    await submit(store, ADMIN.add("t"))
    assert (await owner(store, "s"), await owner(store, "t")) == (None, "alice")


async def test_a_cleared_session_is_its_owners_still(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    await submit(store, ALICE.clear("s"))
    assert await select(store, "SELECT * FROM agent_sessions") == []
    with pytest.raises(SessionNotFound):
        await submit(store, BOB.add("s"))
    await submit(store, ADMIN.add("s"))
    assert await owner(store, "s") == "alice", "in the new row as well"


async def test_a_row_that_upstream_made_anew_names_its_owner_when_touched(
    store: MetadataStore,
) -> None:
    await submit(store, ALICE.add("s"))
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE agent_sessions SET user_id = NULL"))
    assert await verify_projection(store) == []
    await submit(store, ALICE.add("s"))
    assert await owner(store, "s") == "alice"


async def test_the_expected_version_is_that_before_the_claim(store: MetadataStore) -> None:
    first = await submit(store, ALICE.add("s", expected_version=0))
    assert first.version == 2
    with pytest.raises(VersionConflict) as conflict:
        await submit(store, ALICE.add("s", expected_version=1))
    assert conflict.value.actual == 2


async def test_a_claim_inside_the_callers_transaction(store: MetadataStore) -> None:
    async with store.engine.connect() as connection:
        await submit(store, ALICE.add("s"), connection=connection)
        await submit(store, ALICE.pop("s"), connection=connection)
        await connection.rollback()
    assert await owner(store, "s") is None
    async with store.engine.begin() as connection:
        await submit(store, ALICE.add("s"), connection=connection)
        with pytest.raises(SessionNotFound):
            await submit(store, BOB.add("s"), connection=connection)
        await submit(store, ALICE.transfer("s", "bob"), connection=connection)
        await submit(store, BOB.add("s"), connection=connection)
    assert await owner(store, "s") == "bob"
    assert await types(store, "s") == [
        "user_assigned",
        "items_added",
        "user_assigned",
        "items_added",
    ]


# --- Out of reach -------------------------------------------------------------------------------


@each_write
async def test_a_foreign_session_is_as_if_missing_to_writes(
    store: MetadataStore, write: Any
) -> None:
    await submit(store, BOB.add("foreign"))
    refusals = []
    for session_id in ("foreign", "missing"):
        for options in ({}, {"may_be_retry": True}, {"expected_version": 0}):
            command = write(ALICE_OWN, session_id)
            vars(command).update(options)
            with pytest.raises(SessionNotFound) as refusal:
                await submit(store, command)
            assert refusal.value.session_id == session_id
            refusals.append(str(refusal.value).replace(session_id, "…"))
    assert len(set(refusals)) == 1
    assert await types(store, "missing") == []
    assert len(await types(store, "foreign")) == 2


@each_removal
async def test_a_foreign_session_is_as_if_missing_to_removals(
    store: MetadataStore, removal: Any
) -> None:
    await submit(store, BOB.add("foreign"))
    await submit(store, BOB.set("foreign", {"k": 1}))
    for actor in (ALICE, ALICE_OWN):
        for session_id in ("foreign", "missing"):
            assert await submit(store, removal(actor, session_id)) is None
    assert len(await types(store, "foreign")) == 3


async def test_the_version_of_a_foreign_session_is_not_told(store: MetadataStore) -> None:
    await submit(store, BOB.add("foreign"))
    for actor in (ALICE, ALICE_OWN):
        for make in (actor.add, actor.pop, actor.clear, actor.create):
            for session_id in ("foreign", "missing"):
                with pytest.raises(VersionConflict) as conflict:
                    await submit(store, make(session_id, expected_version=2))
                assert conflict.value.actual == 0


async def test_what_is_recorded_in_a_foreign_session_is_not_told(store: MetadataStore) -> None:
    event_id = new_event_id()
    await submit(store, BOB.add("foreign", event_id=event_id))
    with pytest.raises(SessionNotFound):
        await submit(store, ALICE.add("foreign", event_id=event_id, may_be_retry=True))
    retried = BOB.add("foreign", event_id=event_id, may_be_retry=True)
    assert (await submit(store, retried)).event_id == event_id


async def test_without_claims_an_unowned_session_is_out_of_reach(store: MetadataStore) -> None:
    await submit(store, ADMIN.add("s"))
    with pytest.raises(SessionNotFound):
        await submit(store, ALICE_OWN.add("s"))
    assert await submit(store, ALICE_OWN.pop("s")) is None
    await submit(store, ALICE.add("s"))
    assert await submit(store, ALICE_OWN.pop("s"))


# --- Create and transfer ------------------------------------------------------------------------


async def test_create_writes_the_rows_at_once(store: MetadataStore) -> None:
    event = await submit(store, ALICE.create("s"))
    assert (event.type, event.version) == ("user_assigned", 1)
    assert await select(store, "SELECT session_id, user_id FROM agent_sessions") == [("s", "alice")]
    assert await submit(store, ALICE.create("s")) is None
    with pytest.raises(SessionNotFound):
        await submit(store, BOB.create("s"))
    await submit(store, ALICE.clear("s"))
    assert await submit(store, ALICE.create("s")) is None
    assert await owner(store, "s") == "alice"
    assert len(await select(store, "SELECT * FROM agent_sessions")) == 1


async def test_create_can_be_repeated_under_its_event_id(store: MetadataStore) -> None:
    event_id = new_event_id()
    first = await submit(store, ALICE.create("s", event_id=event_id))
    retried = ALICE.create("s", event_id=event_id, may_be_retry=True)
    assert await submit(store, retried) == first
    await submit(store, ADMIN.transfer("s", "bob"))
    with pytest.raises(EventIdReused):
        await submit(store, BOB.create("s", event_id=event_id, may_be_retry=True))


async def test_transfer_by_the_owner_and_by_the_administrator(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    event = await submit(store, ALICE.transfer("s", "bob"))
    assert event.data == {"user_id": "bob", "previous": "alice", "with_history": False}
    assert (await owner(store, "s"), await users_of(store)) == ("bob", ["alice", "bob"])
    with pytest.raises(SessionNotFound):
        await submit(store, ALICE.add("s"))
    assert await submit(store, BOB.transfer("s", "bob")) is None
    await submit(store, ADMIN.transfer("s", "alice"))
    await submit(store, ALICE.add("s"))
    assert len(await types(store, "s")) == 5


async def test_only_what_is_ones_own_can_be_transferred(store: MetadataStore) -> None:
    await submit(store, ADMIN.add("unowned"))
    await submit(store, BOB.add("foreign"))
    messages = set()
    for actor in (ALICE, ALICE_OWN):
        for session_id in ("unowned", "foreign", "missing"):
            with pytest.raises(SessionNotFound) as refusal:
                await submit(store, actor.transfer(session_id, "alice"))
            messages.add(str(refusal.value).replace(session_id, "…"))
    assert len(messages) == 1
    with pytest.raises(SessionNotFound):
        await submit(store, ADMIN.transfer("missing", "alice"))
    await submit(store, ADMIN.transfer("unowned", "alice"))
    assert await owner(store, "unowned") == "alice"


async def test_a_transfer_can_be_repeated_though_it_is_out_of_reach(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    event_id = new_event_id()
    first = await submit(store, ALICE.transfer("s", "bob", event_id=event_id))
    again = {"event_id": event_id, "may_be_retry": True}
    assert await submit(store, ALICE.transfer("s", "bob", **again)) == first
    with pytest.raises(EventIdReused):
        await submit(store, ALICE.transfer("s", "carol", **again))
    with pytest.raises(EventIdReused):
        await submit(store, ALICE.transfer("s", "bob", with_history=True, **again))
    with pytest.raises(SessionNotFound):
        await submit(store, Actor("carol").transfer("s", "bob", **again))


# --- Batches ------------------------------------------------------------------------------------


async def test_the_first_of_a_batch_wins_the_session(store: MetadataStore) -> None:
    carol = Actor("carol")
    outcomes = await together(
        store, ALICE.pop("s"), BOB.add("s"), ALICE.add("s"), ADMIN.add("s"), carol.pop("s")
    )
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "NoneType",
        "RecordedEvent",
        "SessionNotFound",
        "RecordedEvent",
        "NoneType",
    ]
    assert await owner(store, "s") == "bob"
    assert await users_of(store) == ["bob"]


async def test_a_batch_on_behalf_of_several_writes_what_each_may(store: MetadataStore) -> None:
    await submit(store, BOB.add("s"))
    new = await together(store, ADMIN.add("new"), ALICE.add("new"))
    assert [outcome.version for outcome in new] == [1, 3]
    outcomes = await together(
        store, ADMIN.add("s", "1"), ALICE.add("s", "no"), BOB.add("s", "2"), ALICE.add("t", "3")
    )
    assert isinstance(outcomes.pop(1), SessionNotFound)
    assert [outcome.version for outcome in outcomes] == [3, 4, 2]
    assert [event.actor for event in await events(store, "s")] == ["bob", "bob", None, "bob"]
    stored = await select(store, "SELECT message_data FROM agent_messages ORDER BY id")
    assert [text for (text,) in stored[3:]] == ["1", "2", "3"]


async def test_a_session_may_change_hands_within_a_batch(store: MetadataStore) -> None:
    outcomes = await together(
        store,
        ALICE.add("s"),
        ALICE.transfer("s", "bob"),
        ALICE.add("s"),
        BOB.set("s", {"k": 1}),
        ADMIN.delete_user("bob"),
        BOB.add("s"),
        ADMIN.add("s"),
        BOB.add("t"),
    )
    refused = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, SessionNotFound)]
    assert refused == [2, 5]
    assert (await owner(store, "s"), await owner(store, "t")) == ("", "bob")
    assert await types(store, "bob", "user") == ["user_created", "user_deleted", "user_created"]


async def test_a_batch_of_many_claims(store: MetadataStore) -> None:
    commands = [Actor(f"user {n % 7}").add(f"s{n}", str(n)) for n in range(100)]
    commands += [Actor(f"user {n % 7}").set(f"s{n}", {"n": n}) for n in range(100)]
    outcomes = await together(store, *commands)
    assert [outcome.version for outcome in outcomes] == [2] * 100 + [3] * 100
    for n in range(0, 100, 9):
        assert await owner(store, f"s{n}") == f"user {n % 7}"
    assert await users_of(store) == [f"user {n}" for n in range(7)]


# --- The one statement on PostgreSQL ------------------------------------------------------------


def count_statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from eventmeta.dialects.postgresql import driver as running

    ran: list[str] = []
    execute = running._execute

    async def counted(connection: Any, facts: Any, query: Any) -> Any:
        ran.append(query.statement.sql)
        return await execute(connection, facts, query)

    monkeypatch.setattr(running, "_execute", counted)
    return ran


async def test_a_write_to_ones_own_session_is_one_statement(
    postgresql_backend: Any, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(store, ALICE.add("alice"))
    await submit(store, BOB.add("bob"))
    ran, begun = count_statements(monkeypatch), count_transactions(store, monkeypatch)
    event = await submit(store, ALICE.add("alice", "a", "b"))
    assert (event.version, len(event.data["item_ids"])) == (3, 2)
    await submit(store, ALICE_OWN.set("alice", {"k": 1}))
    assert (len(ran), len(begun)) == (2, 2)
    outcomes = await together(
        store, ALICE.add("alice"), BOB.add("bob"), ADMIN.add("s"), BOB.note("bob")
    )
    assert [outcome.version for outcome in outcomes] == [5, 3, 1, 4]
    assert (len(ran), len(begun)) == (3, 3)


async def test_what_the_one_statement_leaves_out_is_settled_next(
    postgresql_backend: Any, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(store, ALICE.add("alice"))
    await submit(store, BOB.add("bob"))
    begun = count_transactions(store, monkeypatch)
    outcomes = await together(
        store,
        ALICE.add("bob", "no"),
        ALICE.add("alice", "1"),
        ALICE.add("new", "2"),
        ADMIN.add("unowned", "3"),
        BOB.set("other", {"k": 1}),
        ALICE.set("alice", {"k": 1}),
    )
    assert len(begun) == 2
    assert isinstance(outcomes[0], SessionNotFound)
    assert [outcome.version for outcome in outcomes[1:]] == [3, 2, 1, 2, 4]
    stored = await select(store, "SELECT session_id, message_data FROM agent_messages ORDER BY id")
    assert sorted(stored[2:]) == [("alice", "1"), ("new", "2"), ("unowned", "3")]
    assert await owner(store, "other") == "bob"


async def test_the_one_statement_asks_the_locked_row_whose_it_is(
    postgresql_backend: Any, store: MetadataStore, engine: AsyncEngine
) -> None:
    """In its snapshot the session is alice's; it waits for the transfer, and then it is bob's."""
    await submit(store, ALICE.add("s"))
    async with engine.connect() as connection:
        await submit(store, ALICE.transfer("s", "bob"), connection=connection)
        late = asyncio.ensure_future(submit(store, ALICE.add("s")))
        await asyncio.sleep(0.3)
        assert not late.done()
        await connection.commit()
    with pytest.raises(SessionNotFound):
        await late
    assert await types(store, "s") == ["user_assigned", "items_added", "user_assigned"]
    assert len(await select(store, "SELECT * FROM agent_messages")) == 1


# --- Races --------------------------------------------------------------------------------------


@pytest.fixture
async def stores(store: MetadataStore, persistent_url: str) -> Any:
    """Two stores on the same database, each with a writer of its own, as in two processes."""
    engine = create_async_engine(persistent_url)
    yield store, MetadataStore(engine)
    await engine.dispose()


def failures(stores: Any, monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors of transactions, also of those that were then repeated; none for a long wait."""
    found: list[BaseException] = []
    for store in stores:
        write = store.log.database.dialect.write

        async def watched(
            *arguments: Any, write: Any = write, store: Any = store, **options: Any
        ) -> Any:
            try:
                return await write(*arguments, **options)
            except Exception as error:
                if store.log.database.dialect.diagnose(error)[0] is not Failure.HELD:
                    found.append(error)
                raise

        monkeypatch.setattr(store.log.database.dialect, "write", watched)
    return found


async def race(*calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def test_one_of_many_claims_wins(stores: Any) -> None:
    for session_id in ("s0", "s1", "s2"):
        actors = [Actor(f"user {n}") for n in range(8)]
        outcomes = await race(
            *(
                submit(stores[n % 2], actor.add(session_id))
                for _ in range(3)
                for n, actor in enumerate(actors)
            )
        )
        winner = await owner(stores[0], session_id)
        assert {event.actor for event in await events(stores[0], session_id)} == {winner}
        assert (await types(stores[0], session_id)).count("user_assigned") == 1
        for actor, outcome in zip(actors * 3, outcomes, strict=True):
            assert isinstance(outcome, SessionNotFound) == (actor.user_id != winner)


async def test_nothing_of_the_old_owner_comes_after_a_transfer(stores: Any) -> None:
    for round_ in range(5):
        session_id = f"s{round_}"
        await submit(stores[0], ALICE.add(session_id))
        await race(
            *(submit(stores[0], ALICE.add(session_id)) for _ in range(10)),
            submit(stores[1], ALICE.transfer(session_id, "bob")),
            *(submit(stores[n % 2], BOB.add(session_id)) for n in range(6)),
            *(submit(stores[1], ALICE.pop(session_id)) for _ in range(6)),
        )
        found = await events(stores[0], session_id)
        moved = next(e.version for e in found if e.data.get("previous") == "alice")
        assert {e.actor for e in found if e.version <= moved} == {"alice"}
        assert {e.actor for e in found if e.version > moved} <= {"bob"}


async def test_opposite_orders_do_not_deadlock(
    server_backend: Any, stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch claims, hands over and describes the same sessions and users."""
    for round_ in range(4):
        found = failures(stores, monkeypatch)
        actors = [Actor(f"user {n}") for n in range(6)]
        batches: list[list[Any]] = []
        for n in range(6):
            batch = [
                command
                for turn, actor in enumerate(actors)
                for command in (
                    actor.add(f"s{round_} {(turn + n) % 6}"),
                    ADMIN.set_user(str(actors[turn - n].user_id), {"n": n}),
                    ADMIN.transfer(f"s{round_} {turn}", str(actors[(turn + n) % 6].user_id)),
                )
            ]
            batches.append(batch[::-1] if n % 2 else batch)
        await race(
            *(together(stores[n % 2], *batch) for n, batch in enumerate(batches)),
        )
        assert found == []


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_claim_that_is_cancelled_is_complete_or_absent(
    store: MetadataStore, late: bool
) -> None:
    number = 0
    event_id = new_event_id()

    def claim() -> Any:
        nonlocal number, event_id
        number, event_id = number + 1, new_event_id()
        return submit(store, Actor(f"user {number}").add(f"s{number}", event_id=event_id))

    async for outcome in cancel_everywhere(claim, late=late):
        assert outcome.error is None
        name, user_id = f"s{number}", f"user {number}"
        there = bool(await types(store, name))
        assert there or outcome.cancelled
        assert await owner(store, name) == (user_id if there else None)
        again = Actor(user_id).add(name, event_id=event_id, may_be_retry=True)
        assert (await submit(store, again)).event_id == event_id
        assert await types(store, name) == ["user_assigned", "items_added"]
        assert await types(store, user_id, "user") == ["user_created"]
    assert number > 1
