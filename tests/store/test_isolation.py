"""Two users, every public method: someone else's session is as one that does not exist.

The methods are found by reflection, so that a method without a case fails the test.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from agents import RunContextWrapper, Usage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    MetadataSession,
    MetadataStore,
    NewEvent,
    Position,
    SessionEntry,
    User,
    UserStore,
    acting_as,
    new_event_id,
)
from eventmeta.core.principal import Principal
from eventmeta.queries.scope import Scope
from tests.support.helpers import users

pytestmark = pytest.mark.two_dialects

CANARY = "zq7391canary"
BOB = f"bob-{CANARY}"
EVENT_ID = new_event_id()
"""Of an event in bob's session, which alice has somehow learned."""


@dataclass(frozen=True)
class ProjectionTarget:
    """What a method is called with."""

    session_id: str
    user_id: str


OWN = ProjectionTarget("own", "alice")
FOREIGN = ProjectionTarget("theirs", BOB)
MISSING = ProjectionTarget("missing", "nobody")
UNOWNED = ProjectionTarget("unowned", "nobody")


@dataclass(frozen=True)
class Case:
    """A call of one method.

    Attributes:
        call: The call, with a handle of alice's.
        creates: On a missing session, it makes one if the handle may claim it.
        depends: The outcome depends on the session, or on the user, that it is called for.
    """

    call: Callable[[Any, ProjectionTarget], Any]
    creates: bool = False
    depends: bool = True


def case(call: Callable[[Any, ProjectionTarget], Any]) -> Case:
    return Case(call)


def creating(call: Callable[[Any, ProjectionTarget], Any]) -> Case:
    return Case(call, creates=True)


def indifferent(call: Callable[[Any, ProjectionTarget], Any]) -> Case:
    return Case(call, depends=False)


RETRY: dict[str, Any] = {"event_id": EVENT_ID}

METADATA = {
    "get_metadata": [
        case(lambda it, _: it.get_metadata()),
        case(lambda it, _: it.get_metadata(["k", "gone"], default=0)),
        case(lambda it, _: it.get_metadata(as_of=50)),
        case(lambda it, _: it.get_metadata(["k"], as_of=Position(2**40))),
        case(lambda it, _: it.get_metadata(as_of=datetime(2999, 1, 1, tzinfo=UTC))),
    ],
    "set_metadata": [
        creating(lambda it, _: it.set_metadata({"k": 2})),
        creating(lambda it, _: it.set_metadata({"k": 2}, **RETRY)),
        creating(lambda it, _: it.set_metadata({"k": 2}, expected_version=2)),
        indifferent(lambda it, _: it.set_metadata({})),
    ],
    "delete_metadata": [
        case(lambda it, _: it.delete_metadata()),
        case(lambda it, _: it.delete_metadata(["k"])),
        case(lambda it, _: it.delete_metadata(expected_version=2)),
        case(lambda it, _: it.delete_metadata(**RETRY)),
    ],
    "history": [
        case(lambda it, _: it.history()),
        case(lambda it, _: it.history("k", limit=1)),
        case(lambda it, _: it.history(after=1)),
    ],
    "diff": [case(lambda it, _: it.diff(0, 50))],
}

FINDING = [
    indifferent(lambda it, _: it.find_sessions_by_metadata("needle", "needle")),
    indifferent(lambda it, _: it.find_sessions_by_metadata("shared", 1)),
]

SESSION = {
    **METADATA,
    "get_items": [
        case(lambda it, _: it.get_items()),
        case(lambda it, _: it.get_items(1)),
        case(lambda it, _: it.get_items(turns=1)),
    ],
    "add_items": [
        creating(lambda it, _: it.add_items(users("a"))),
        creating(lambda it, _: it.add_items(users("a"), expected_version=0)),
        creating(lambda it, _: it.add_items(users("a"), **RETRY)),
    ],
    "pop_item": [
        case(lambda it, _: it.pop_item()),
        case(lambda it, _: it.pop_item(expected_version=1)),
        case(lambda it, _: it.pop_item(**RETRY)),
    ],
    "clear_session": [
        case(lambda it, _: it.clear_session()),
        case(lambda it, _: it.clear_session(keep_metadata=True)),
        case(lambda it, _: it.clear_session(**RETRY)),
    ],
    "find_sessions_by_metadata": FINDING,
    "get_sessions_for_user": [case(lambda it, target: it.get_sessions_for_user(target.user_id))],
    "transfer": [
        case(lambda it, _: it.transfer("carol")),
        case(lambda it, _: it.transfer("carol", expected_version=3)),
        case(lambda it, _: it.transfer("carol", **RETRY)),
    ],
    "create_session": [indifferent(lambda it, _: it.create_session("alice", engine=it.engine))],
    "get_session": [
        case(
            lambda it, target: it.get_session(
                "alice", target.session_id, engine=it.engine, structured_metadata=True
            )
        )
    ],
    "get_sessions": [
        indifferent(
            lambda it, _: it.get_sessions("alice", engine=it.engine, structured_metadata=True)
        )
    ],
    "get_turns": [
        case(lambda it, _: it.get_turns()),
        case(lambda it, _: it.get_turns(limit=1, after=1)),
    ],
    "get_conversation_by_turns": [case(lambda it, _: it.get_conversation_by_turns())],
    "get_tool_usage": [case(lambda it, _: it.get_tool_usage())],
    "get_usage": [
        case(lambda it, _: it.get_usage()),
        case(lambda it, _: it.get_usage(turn=2)),
        indifferent(lambda it, _: it.get_usage(run_id="of nobody")),
    ],
    "get_turn_usage": [
        case(lambda it, _: it.get_turn_usage()),
        case(lambda it, _: it.get_turn_usage(2)),
    ],
    "store_run_usage": [creating(lambda it, _: it.store_run_usage(result()))],
    "from_url": [
        indifferent(lambda it, _: it.from_url("own", url="sqlite+aiosqlite://", user_id="alice"))
    ],
    "engine": [indifferent(lambda it, _: it.engine.name)],
    "session_settings": [indifferent(lambda it, _: it.session_settings)],
    "user_id": [indifferent(lambda it, _: it.user_id)],
}

APPENDED = NewEvent("app.noted", {"k": 1})

STORE = {
    "session": [case(lambda it, target: it.session(target.session_id).get_items())],
    "create_session": [indifferent(lambda it, _: it.create_session())],
    "get_session": [case(lambda it, target: it.get_session(target.session_id))],
    "list_sessions": [
        indifferent(lambda it, _: it.list_sessions()),
        indifferent(lambda it, target: it.list_sessions(after=last(target))),
    ],
    "find_sessions_by_metadata": FINDING,
    "append": [
        creating(lambda it, target: it.append(target.session_id, APPENDED)),
        creating(lambda it, target: it.append(target.session_id, APPENDED, expected_version=3)),
        creating(
            lambda it, target: it.append(
                target.session_id, NewEvent("app.noted", {"k": 1}, event_id=EVENT_ID)
            )
        ),
    ],
    "get_usage": [
        indifferent(lambda it, _: it.get_usage()),
        indifferent(lambda it, _: it.get_usage("session")),
        indifferent(lambda it, _: it.get_usage("user")),
    ],
    "events": [
        indifferent(lambda it, _: listed(it.events())),
        case(lambda it, target: listed(it.events(stream=target.session_id))),
        indifferent(lambda it, _: listed(it.events(types=["user_assigned"]))),
    ],
    "horizon": [indifferent(lambda it, _: it.horizon())],
    "user": [case(lambda it, target: it.user(target.user_id).get_metadata())],
    "user_id": [indifferent(lambda it, _: it.user_id)],
    "close": [indifferent(lambda it, _: it.close())],
}

USER = {**METADATA, "user_id": [indifferent(lambda it, _: it.user_id)]}


def last(target: ProjectionTarget) -> SessionEntry:
    moment = datetime.fromisoformat("2037-01-01")
    return SessionEntry(target.session_id, None, moment, moment)


def run() -> RunContextWrapper[None]:
    """A run that has made one request."""
    return RunContextWrapper(None, usage=Usage(requests=1, input_tokens=7, total_tokens=7))


def result() -> Any:
    """What such a run ends with, as far as its usage is concerned."""
    return SimpleNamespace(context_wrapper=run(), raw_responses=[])


async def listed(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


KINDS: dict[
    str, tuple[type, dict[str, list[Case]], Callable[[MetadataStore, ProjectionTarget], Any]]
] = {
    "session that claims": (
        MetadataSession,
        SESSION,
        lambda store, target: store.session(target.session_id, user_id="alice"),
    ),
    "session": (
        MetadataSession,
        SESSION,
        lambda store, target: store.as_user("alice").session(target.session_id),
    ),
    "store": (UserStore, STORE, lambda store, target: store.as_user("alice")),
    "user": (
        User,
        USER,
        lambda store, target: User(
            target.user_id, store.log, Scope(store.log.database, Principal("alice")), 1_000_000
        ),
    ),
}

CALLS = [
    pytest.param(kind, each, id=f"{kind}-{name}-{number}")
    for kind, (_, cases, _) in KINDS.items()
    for name, several in cases.items()
    for number, each in enumerate(several)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_public_method_has_a_case(kind: str) -> None:
    cls, cases, _ = KINDS[kind]
    assert set(cases) == {name for name in dir(cls) if not name.startswith("_")}


@pytest.fixture
async def world(engine: AsyncEngine) -> MetadataStore:
    """Sessions of alice and of bob; all that bob says or does holds the canary."""
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    for name, owner, said in (
        ("own", "alice", "hello"),
        ("theirs", BOB, CANARY),
        (f"second {CANARY}", BOB, CANARY),
        ("unowned", None, "nobody's"),
    ):
        session = store.session(name, user_id=owner)
        with acting_as(said, reason=said):
            await session.set_metadata(
                {"k": said, said: 1, "shared": 1, "needle": "needle" if owner == BOB else 0}
            )
            called = {"type": "function_call", "call_id": said, "name": said, "arguments": said}
            output = {"type": "function_call_output", "call_id": said, "output": said}
            said_and_done: list[Any] = [*users(said, f"{said} 2"), called, output]
            await session.add_items(said_and_done, wrapper=run())
            await store.append(name, NewEvent("app.noted", {"said": said}))
        if owner:
            await store.user(owner).set_metadata({"k": said, said: 1})
    await store.session("theirs").set_metadata({"late": CANARY}, event_id=EVENT_ID)
    return store


@pytest.mark.parametrize(("kind", "each"), CALLS)
async def test_foreign_is_as_missing(
    world: MetadataStore, caplog: pytest.LogCaptureFixture, kind: str, each: Case
) -> None:
    handle = KINDS[kind][2]
    bobs = await rows_of_bob(world)
    assert len(bobs) > 20
    with caplog.at_level("DEBUG"):
        caplog.clear()

        async def outcome(target: ProjectionTarget) -> object:
            seen = await outcome_of(each.call, handle(world, target), target)
            assert CANARY not in str(seen)
            return seen

        foreign = await outcome(FOREIGN)
        if kind != "session that claims":
            assert foreign == await outcome(MISSING) == await outcome(UNOWNED)
        elif not each.creates:
            assert foreign == await outcome(MISSING)
        logged = [record.getMessage().replace(BOB, "<user>") for record in caplog.records]
        assert [message for message in logged if CANARY in message] == []
    assert await rows_of_bob(world) == bobs
    mine = await outcome_of(each.call, handle(world, OWN), OWN)
    assert CANARY not in str(mine)
    assert not each.depends or mine != foreign


async def outcome_of(
    call: Callable[[Any, ProjectionTarget], Any], handle: Any, target: ProjectionTarget
) -> tuple[str, ...]:
    """What comes of a call, where the names it was called with stand for themselves."""
    try:
        result = call(handle, target)
        if hasattr(result, "__await__"):
            result = await result
        said: tuple[str, ...] = ("returned", shown(result))
    except Exception as error:
        said = (
            "raised",
            type(error).__name__,
            str(error),
            repr(vars(error)),
            "".join(traceback.format_exception_only(error)),
            repr((error.__cause__, error.__context__)),
        )
    return tuple(
        part.replace(target.session_id, "<session>").replace(target.user_id, "<user>")
        for part in said
    )


def shown(result: Any) -> str:
    if isinstance(result, MetadataSession):
        return f"a session of {result.user_id}"
    if isinstance(result, list) and any(isinstance(each, MetadataSession) for each in result):
        return str([shown(each) for each in result])
    assert result is None or is_dataclass(result) or not hasattr(result, "__dict__"), result
    return repr(result)


async def rows_of_bob(store: MetadataStore) -> list[str]:
    """All rows of all tables that are of bob's sessions, or of bob."""
    found: list[str] = []
    async with store.engine.connect() as connection:
        for table in store.log.database.tables.metadata.tables:
            rows = (await connection.execute(text(f"SELECT * FROM {table}"))).all()
            found += [f"{table}: {tuple(row)}" for row in rows if is_of_bob(repr(tuple(row)))]
    return sorted(found)


def is_of_bob(row: str) -> bool:
    return CANARY in row or "theirs" in row
