"""Users: what is known about them, and what becomes of their sessions when they go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    DatabaseBusy,
    EventIdReused,
    MetadataStore,
    NewEvent,
    RecordedEvent,
    SessionNotFound,
    UserNotFound,
    ValueTooLarge,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from eventmeta.core.errors import InvalidIdentifier
from eventmeta.database import retry as retrying
from eventmeta.read_models.comparison import Difference
from projections import NOBODY
from tests.read_models.test_projection_property import FEW_EXAMPLES, running
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
    user_ids,
)
from tests.support.backends import Backend

pytestmark = pytest.mark.each_dialect


async def document(store: MetadataStore, user_id: str) -> str | None:
    statement = "SELECT metadata FROM agent_users WHERE user_id = :id"
    ((found,),) = await select(store, statement, id=user_id)
    return None if found is None else str(found)


# --- Metadata -----------------------------------------------------------------------------------


async def test_metadata_is_merged_and_creates_the_user(store: MetadataStore) -> None:
    first = await submit(store, ADMIN.set_user("alice", {"name": "Alice", "n": 1.0}))
    assert (first.stream_type, first.stream_id, first.version) == ("user", "alice", 2)
    second = await submit(store, ADMIN.set_user("alice", {"n": [True], "é": None}))
    assert second.data["changes"] == [["n", "[true]"], ["é", "null"]]
    assert second.data["metadata"] == '{"n":[true],"name":"Alice","é":null}'
    assert await document(store, "alice") == second.data["metadata"]
    assert await types(store, "alice", "user") == ["user_created", "metadata_set", "metadata_set"]


async def test_deleting_metadata_names_what_was_there(store: MetadataStore) -> None:
    assert await submit(store, ADMIN.delete_user_metadata("alice")) is None
    assert await user_ids(store) == []
    await submit(store, ADMIN.set_user("alice", {"a": 1, "b": 2, "c": 3}))
    gone = await submit(store, ADMIN.delete_user_metadata("alice", ["b", "z"]))
    assert gone.data == {"changes": [["b", None]], "metadata": '{"a":1,"c":3}'}
    assert await submit(store, ADMIN.delete_user_metadata("alice", ["b"])) is None
    rest = await submit(store, ADMIN.delete_user_metadata("alice"))
    assert rest.data["changes"] == [["a", None], ["c", None]]
    assert await document(store, "alice") == "{}"
    assert await submit(store, ADMIN.delete_user_metadata("alice")) is None


async def test_a_claim_keeps_what_is_known_about_the_user(store: MetadataStore) -> None:
    await submit(store, ADMIN.set_user("alice", {"a": 1}))
    await submit(store, ALICE.add("s"))
    assert await document(store, "alice") == '{"a":1}'


async def test_the_document_has_a_limit(store: MetadataStore) -> None:
    await submit(store, ADMIN.set_user("alice", {"a": "x" * 50}, limit=100))
    with pytest.raises(ValueTooLarge) as refusal:
        await submit(store, ADMIN.set_user("alice", {"b": "é" * 25}, limit=100))
    assert (refusal.value.size, refusal.value.limit) == (115, 100)
    await submit(store, ADMIN.set_user("alice", {"a": "é" * 25}, limit=100))
    assert len(await types(store, "alice", "user")) == 3


async def test_versions_and_event_ids_of_a_user(store: MetadataStore) -> None:
    event_id = new_event_id()
    again: dict[str, Any] = {"event_id": event_id, "may_be_retry": True}
    first = await submit(
        store, ADMIN.set_user("a", {"k": 1}, event_id=event_id, expected_version=0)
    )
    with pytest.raises(VersionConflict):
        await submit(store, ADMIN.set_user("a", {"k": 2}, expected_version=1))
    assert await submit(store, ADMIN.set_user("a", {"k": 1}, **again)) == first
    with pytest.raises(EventIdReused):
        await submit(store, ADMIN.set_user("a", {"k": 2}, **again))
    with pytest.raises(EventIdReused):
        await submit(store, ADMIN.delete_user("a", **again))


async def test_a_user_and_a_session_of_one_name_are_two(store: MetadataStore) -> None:
    await together(
        store, ALICE.set("alice", {"k": 1}), ADMIN.set_user("alice", {"k": 2}), ALICE.add("alice")
    )
    assert await owner(store, "alice") == "alice"
    assert await document(store, "alice") == '{"k":2}'
    assert len(await types(store, "alice")) == 3
    await submit(store, ADMIN.delete_user("alice"))
    assert await owner(store, "alice") == NOBODY


async def test_a_user_writes_about_no_one_else(store: MetadataStore) -> None:
    await submit(store, ADMIN.set_user("bob", {"k": 1}))
    for user_id in ("bob", "missing"):
        with pytest.raises(UserNotFound) as refusal:
            await submit(store, ALICE.set_user(user_id, {"k": 2}))
        assert refusal.value.user_id == user_id
        assert await submit(store, ALICE.delete_user_metadata(user_id)) is None
        assert await submit(store, ALICE.delete_user(user_id)) is None
    await submit(store, ALICE.set_user("alice", {"k": 3}))
    assert await user_ids(store) == ["alice", "bob"]
    assert await document(store, "bob") == '{"k":1}'


async def test_many_merge_at_once(store: MetadataStore) -> None:
    await asyncio.gather(*(submit(store, ADMIN.set_user("a", {f"k{n}": n})) for n in range(20)))
    found = await document(store, "a")
    assert found
    assert found.count(":") == 20


@pytest.mark.parametrize("kind", ["user_assigned", "user_created", "user_deleted"])
async def test_an_app_cannot_say_who_owns_what(store: MetadataStore, kind: str) -> None:
    with pytest.raises(InvalidIdentifier):
        await store.append("s", NewEvent(kind, {"user_id": "alice"}))


# --- Deletion -----------------------------------------------------------------------------------


async def test_delete_leaves_the_sessions_to_the_administrator(store: MetadataStore) -> None:
    for session_id in ("s", "t", "cleared"):
        await submit(store, ALICE.add(session_id))
    await submit(store, ALICE.clear("cleared"))
    await submit(store, BOB.add("other"))
    await submit(store, ADMIN.set_user("alice", {"a": 1, "b": 2}))
    event = await submit(store, ADMIN.delete_user("alice"))
    assert (event.type, event.stream_type, event.stream_id) == ("user_deleted", "user", "alice")
    assert event.data["changes"] == [["a", None], ["b", None]]
    assert event.data["sessions"] == ["cleared", "s", "t"]
    assert await user_ids(store) == ["bob"]
    for session_id in ("s", "t", "cleared"):
        assert await owner(store, session_id) == NOBODY
        last = (await events(store, session_id))[-1]
        assert (last.type, last.data) == ("user_assigned", {"user_id": None, "previous": "alice"})
        for actor in (ALICE, BOB):
            with pytest.raises(SessionNotFound):
                await submit(store, actor.add(session_id))
            with pytest.raises(SessionNotFound):
                await submit(store, actor.create(session_id))
        await submit(store, ADMIN.add(session_id))
    assert await owner(store, "other") == "bob"
    assert await submit(store, ADMIN.delete_user("alice")) is None


async def test_who_comes_again_does_not_get_the_sessions_back(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    await submit(store, ADMIN.set_user("alice", {"a": 1}))
    await submit(store, ADMIN.delete_user("alice"))
    await submit(store, ALICE.add("new"))
    assert await document(store, "alice") is None
    with pytest.raises(SessionNotFound):
        await submit(store, ALICE.add("s"))
    event = await submit(store, ADMIN.transfer("s", "alice"))
    assert event.data == {"user_id": "alice", "previous": None, "with_history": False}
    await submit(store, ALICE.add("s"))
    assert await owner(store, "s") == "alice"
    assert (await submit(store, ADMIN.delete_user("alice"))).data["sessions"] == ["new", "s"]


async def test_delete_can_be_repeated_under_its_event_id(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    event_id = new_event_id()
    first = await submit(store, ADMIN.delete_user("alice", event_id=event_id))
    await submit(store, ALICE.add("t"))
    again = ADMIN.delete_user("alice", event_id=event_id, may_be_retry=True)
    assert await submit(store, again) == first
    assert await owner(store, "t") == "alice"


async def test_delete_inside_the_callers_transaction(store: MetadataStore) -> None:
    await submit(store, ALICE.add("s"))
    for ends in ("rollback", "commit"):
        async with store.engine.connect() as connection:
            await submit(store, ALICE.add("t"), connection=connection)
            event = await submit(store, ADMIN.delete_user("alice"), connection=connection)
            assert event.data["sessions"] == ["s", "t"]
            await getattr(connection, ends)()
        assert await owner(store, "s") == {"rollback": "alice", "commit": NOBODY}[ends]
    assert await user_ids(store) == []


async def test_delete_is_set_based(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand sessions take as many statements as one."""
    counts: list[int] = []
    write = store.log.database.dialect.write

    async def counted(program: Any, **options: Any) -> Any:
        def watched() -> Any:
            rows, count = None, 0
            try:
                while True:
                    query = program.send(rows)
                    count += 1
                    rows = yield query
            except StopIteration as done:
                counts.append(count)
                return done.value

        return await write(watched(), **options)

    for user_id, sessions in (("few", 2), ("many", 1_000)):
        actor = Actor(user_id)
        await together(store, *(actor.create(f"{user_id} {n}") for n in range(sessions)))
        monkeypatch.setattr(store.log.database.dialect, "write", counted)
        event = await submit(store, ADMIN.delete_user(user_id))
        monkeypatch.undo()
        assert len(event.data["sessions"]) == sessions
    assert counts[0] == counts[1]


async def test_delete_waits_for_claims_that_are_under_way(
    server_backend: Backend, store: MetadataStore, engine: AsyncEngine
) -> None:
    """The session is assigned after the deletion has read which there are: it is repeated."""
    await submit(store, ALICE.add("first"))
    async with engine.connect() as connection:
        await submit(store, ALICE.add("late"), connection=connection)
        await submit(store, ADMIN.set_user("alice", {"a": 1}), connection=connection)
        deletion = asyncio.ensure_future(submit(store, ADMIN.delete_user("alice")))
        await asyncio.sleep(0.3)
        assert not deletion.done()
        await connection.commit()
    assert (await deletion).data["sessions"] == ["first", "late"]
    assert await user_ids(store) == []


async def test_delete_beside_claims(store: MetadataStore, persistent_url: str) -> None:
    engine = create_async_engine(persistent_url)
    other = MetadataStore(engine)
    numbers = itertools.count()

    async def claim(store: MetadataStore) -> None:
        for _ in range(12):
            await submit(store, ALICE.add(f"s{next(numbers)}"))

    async def delete() -> list[RecordedEvent | None]:
        return [await submit(other, ADMIN.delete_user("alice")) for _ in range(5)]

    _, _, deleted = await asyncio.gather(claim(store), claim(other), delete())
    last = await submit(store, ADMIN.delete_user("alice"))
    lost = [name for event in (*deleted, last) if event for name in event.data["sessions"]]
    assert sorted(lost) == sorted(f"s{n}" for n in range(24))
    assert {await owner(store, name) for name in lost} == {NOBODY}
    await engine.dispose()


async def test_a_claim_that_cannot_be_locked_is_not_overlooked(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the sessions not counted again under the lock, some would keep an owner who is gone."""
    await submit(store, ALICE.add("s"))
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.2)
    statements = store.log.appender._own[False].commands
    find = statements.owned_sessions
    monkeypatch.setitem(vars(statements), "owned_sessions", lambda user_id: find(user_id="no one"))
    with pytest.raises(DatabaseBusy):
        await submit(store, ADMIN.delete_user("alice"))
    assert await owner(store, "s") == "alice"


async def test_a_user_whose_row_was_removed_by_hand_can_be_deleted(store: MetadataStore) -> None:
    """Until then nobody can write to the sessions, whose owner's foreign key finds no row."""
    for name in ("s", "t"):
        await submit(store, ALICE.add(name))
    await submit(store, ADMIN.set_user("alice", {"k": 1}))
    async with store.engine.begin() as connection:
        await connection.execute(text("DELETE FROM agent_users"))
    assert (await submit(store, ADMIN.delete_user("alice"))).data["sessions"] == ["s", "t"]
    await submit(store, ADMIN.add("s"))
    await submit(store, ADMIN.transfer("s", "alice"))
    await submit(store, ALICE.add("s"))
    assert await owner(store, "s") == "alice"


# --- Verification -------------------------------------------------------------------------------

TAMPERING = {
    "UPDATE agent_streams SET user_id = 'bob' WHERE stream_id = 's'": [
        Difference("owners", ("s", "session"), "different")
    ],
    "UPDATE agent_streams SET user_id = NULL WHERE stream_id = 's'": [
        Difference("owners", ("s", "session"), "missing")
    ],
    "UPDATE agent_streams SET user_id = 'bob' WHERE stream_id = 'unowned'": [
        Difference("owners", ("unowned", "session"), "surplus")
    ],
    "UPDATE agent_streams SET user_id = NULL WHERE stream_type = 'user' AND stream_id = 'bob'": [
        Difference("owners", ("bob", "user"), "missing")
    ],
    "DELETE FROM agent_streams WHERE stream_type = '$handover'": [
        Difference("handovers", ("given", "$handover"), "missing")
    ],
    "UPDATE agent_streams SET version = 0 WHERE stream_type = '$handover'": [
        Difference("handovers", ("given", "$handover"), "different")
    ],
    "UPDATE agent_sessions SET user_id = 'bob' WHERE session_id = 's'": [
        Difference("session_owners", ("s",), "different")
    ],
    "UPDATE agent_users SET metadata = '{}' WHERE user_id = 'bob'": [
        Difference("users", ("bob",), "different")
    ],
    "INSERT INTO agent_users SELECT 'eve', metadata, created_at, updated_at FROM agent_users "
    "WHERE user_id = 'bob'": [Difference("users", ("eve",), "surplus")],
}


@pytest.mark.parametrize("statement", TAMPERING)
async def test_verification_finds_what_was_written_by_hand(
    engine: AsyncEngine, statement: str
) -> None:
    store = MetadataStore(engine)
    await store.create_tables()
    await submit(store, ALICE.add("s"))
    await submit(store, ADMIN.add("unowned"))
    await submit(store, ADMIN.set_user("bob", {"k": 1}))
    await submit(store, ALICE.add("given"))
    await submit(store, ALICE.transfer("given", "bob"))
    await submit(store, Actor("carol").add("orphan"))
    await submit(store, ADMIN.delete_user("carol"))
    assert await verify_projection(store) == []
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    assert await verify_projection(store) == TAMPERING[statement]


# --- Programs -----------------------------------------------------------------------------------

USERS = ("alice", "Alice", "alice ")
SESSIONS = ("s", "S", "alice")


@dataclass
class Model:
    """What there should be."""

    owners: dict[str, str] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    documents: dict[str, dict[str, int]] = field(default_factory=dict)

    def apply(self, step: Step) -> str:
        """Carry it out: ``"event"``, ``"none"`` or ``"refused"``."""
        name, user_id, claims = step.session, step.user, step.claims
        found = self.owners.get(name)
        there = user_id is None or (claims if found is None else found == user_id)
        done = getattr(self, step.kind)(step) if there or step.of_user else None
        if not there and not step.of_user:
            return "none" if step.kind in ("pop", "clear") else "refused"
        if done == "event" and not step.of_user and found is None and user_id is not None:
            self.assign(name, user_id)
        return str(done)

    def assign(self, name: str, user_id: str) -> None:
        self.owners[name] = user_id
        self.documents.setdefault(user_id, {})

    def add(self, step: Step) -> str:
        self.items[step.session] = self.items.get(step.session, 0) + 1
        self.rows.add(step.session)
        return "event"

    def pop(self, step: Step) -> str:
        if not self.items.get(step.session):
            return "none"
        self.items[step.session] -= 1
        return "event"

    def clear(self, step: Step) -> str:
        there = step.session in self.rows
        self.items[step.session] = 0
        self.rows.discard(step.session)
        return "event" if there else "none"

    def create(self, step: Step) -> str:
        self.rows.add(step.session)
        return "event" if self.owners.get(step.session) is None else "none"

    def transfer(self, step: Step) -> str:
        found = self.owners.get(step.session)
        if found is None and (step.user is not None or step.session not in self.rows):
            return "refused"
        if found == step.other:
            return "none"
        self.assign(step.session, step.other)
        return "event"

    def set_user(self, step: Step) -> str:
        self.documents.setdefault(step.other, {})[step.session] = 1
        return "event"

    def delete_user(self, step: Step) -> str:
        if self.documents.pop(step.other, None) is None:
            return "none"
        for name, found in self.owners.items():
            if found == step.other:
                self.owners[name] = NOBODY
        return "event"


@dataclass(frozen=True)
class Step:
    kind: str
    user: str | None
    claims: bool
    session: str
    other: str

    @property
    def of_user(self) -> bool:
        return self.kind in ("set_user", "delete_user")

    def command(self) -> Any:
        actor = Actor(self.user, self.claims)
        match self.kind:
            case "transfer":
                return actor.transfer(self.session, self.other)
            case "set_user":
                return ADMIN.set_user(self.other, {self.session: 1})
            case "delete_user":
                return ADMIN.delete_user(self.other)
        return getattr(actor, self.kind)(self.session)


def _possible(step: Step) -> bool:
    return step.kind != "create" or (step.user is not None and step.claims)


KINDS = ("add", "add", "pop", "clear", "create", "transfer", "set_user", "delete_user")
steps = st.builds(
    Step,
    st.sampled_from(KINDS),
    st.none() | st.sampled_from(USERS),
    st.booleans(),
    st.sampled_from(SESSIONS),
    st.sampled_from(USERS),
).filter(_possible)


def kind_of(outcome: Any) -> str:
    if isinstance(outcome, RecordedEvent):
        return "event"
    return "none" if outcome is None else "refused"


async def run_program(store: MetadataStore, batches: list[list[Step]]) -> None:
    model = Model()
    for batch in batches:
        outcomes = await together(store, *(step.command() for step in batch))
        expected = [model.apply(step) for step in batch]
        assert [kind_of(outcome) for outcome in outcomes] == expected, batch
    assert await verify_projection(store) == []
    tables = store.log.database.tables
    heads = f"SELECT stream_id, user_id FROM {tables.streams.name} WHERE stream_type = 'session'"
    found = {name: owner for name, owner in await select(store, heads) if owner is not None}
    assert found == model.owners
    rows = await select(store, f"SELECT session_id, user_id FROM {tables.sessions.name}")
    assert dict(rows) == {name: model.owners.get(name) or None for name in model.rows}
    users = await select(store, f"SELECT user_id FROM {tables.users.table.name}")
    assert sorted(row[0] for row in users) == sorted(model.documents)
    await store.close()


def test_any_program_leaves_every_session_to_its_owner(backend: Backend) -> None:
    with running(backend) as (runner, empty_store):
        make: Callable[[], MetadataStore] = empty_store

        @settings(FEW_EXAMPLES)
        @given(st.lists(st.lists(steps, min_size=1, max_size=5), min_size=1, max_size=10))
        def check(batches: list[list[Step]]) -> None:
            runner.run(run_program(make(), batches))

        check()
