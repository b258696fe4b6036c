"""A session takes its user from the context of the run that uses it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from agents import RunContextWrapper, Runner
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    InvalidIdentifier,
    MetadataSession,
    MetadataStore,
    SessionNotFound,
    UserMismatch,
    UserUnknown,
)
from tests.support.helpers import user, users
from tests.upstream.test_upstream_runner import QUIET, agent, calls_weather, kinds, says
from tests.upstream.test_upstream_wrappers import FakeResponses, compacting, encrypted

pytestmark = pytest.mark.two_dialects


@dataclass
class Request:
    user_id: Any


def of_request(request: Request) -> str:
    return str(request.user_id)


def run_of(user_id: Any) -> RunContextWrapper[Request]:
    return RunContextWrapper(context=Request(user_id))


@pytest.fixture
def session(store: MetadataStore) -> MetadataSession:
    return store.session("s", user_from=of_request)


async def ask(session: Any, user_id: str, *steps: Any) -> None:
    clerk, model = agent(*(steps or [says("Hello.")]))
    await Runner.run(clerk, "Hi", session=session, context=Request(user_id), run_config=QUIET)
    model.assert_complete()


async def test_a_run_binds_the_session(store: MetadataStore, session: MetadataSession) -> None:
    await ask(session, "alice", calls_weather("Rome"), says("Sunny."))
    assert session.user_id == "alice"
    assert await store.get_sessions_for_user("alice") == ["s"]
    await session.set_metadata({"k": 1})
    assert await session.get_metadata(["k"]) == {"k": 1}
    assert (await session.history())[0].type == "user_assigned"
    assert kinds(await store.as_user("alice").session("s").get_items()) == [
        *("user", "function_call", "function_call_output", "message")
    ]


async def test_a_run_of_someone_else_gets_nothing(
    store: MetadataStore, session: MetadataSession
) -> None:
    await ask(session, "alice")
    before = await session.get_items()
    with pytest.raises(UserMismatch) as caught:
        await ask(session, "bob")
    assert "alice" not in str(caught.value)
    another = store.session("s", user_from=of_request)
    with pytest.raises(SessionNotFound):
        await ask(another, "bob")
    assert another.user_id == "bob"
    assert await another.get_items() == []
    assert await session.get_items() == before


async def test_a_streamed_run_binds_it_too(session: MetadataSession) -> None:
    clerk, _ = agent(says("Hello."))
    request = Request("alice")
    result = Runner.run_streamed(clerk, "Hi", session=session, context=request, run_config=QUIET)
    async for _ in result.stream_events():
        assert session.user_id == "alice"
    assert len(await session.get_items()) == 2


CALLS: dict[str, Callable[[MetadataSession, Any], Any]] = {
    "get_items": lambda session, run: session.get_items(wrapper=run),
    "add_items": lambda session, run: session.add_items(users("a"), wrapper=run),
    "add no items": lambda session, run: session.add_items([], wrapper=run),
    "pop_item": lambda session, run: session.pop_item(wrapper=run),
    "clear_session": lambda session, run: session.clear_session(wrapper=run),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
async def test_each_method_of_the_protocol_binds(
    store: MetadataStore, session: MetadataSession, call: Callable[..., Any]
) -> None:
    await store.session("s", user_id="bob").add_items(users("bob's"))
    with pytest.raises(UserUnknown, match="user_id="):
        await call(session, None)
    assert session.user_id is None
    if call is CALLS["add_items"]:
        with pytest.raises(SessionNotFound):
            await call(session, run_of("alice"))
    else:
        assert not await call(session, run_of("alice"))
    assert session.user_id == "alice"
    with pytest.raises(UserMismatch):
        await call(session, run_of("bob"))
    assert not await session.get_items()  # without a run: as alice
    assert await store.session("s").get_items() == users("bob's")


@every_call
@pytest.mark.parametrize("bad", ["", None, 7], ids=repr)
async def test_a_run_must_name_a_user(
    store: MetadataStore, call: Callable[..., Any], bad: Any
) -> None:
    session = store.session("s", user_from=lambda request: request.user_id)
    with pytest.raises(InvalidIdentifier, match="user id"):
        await call(session, run_of(bad))
    assert session.user_id is None


OTHERS: dict[str, Callable[[MetadataSession], Any]] = {
    "get_metadata": lambda session: session.get_metadata(),
    "set_metadata": lambda session: session.set_metadata({"k": 1}),
    "delete_metadata": lambda session: session.delete_metadata(),
    "find": lambda session: session.find_sessions_by_metadata("k", 1),
    "history": lambda session: session.history(),
    "diff": lambda session: session.diff(0, 1),
    "lists": lambda session: session.get_sessions_for_user("alice"),
    "transfer": lambda session: session.transfer("alice"),
    "snapshot": lambda session: session._get_compaction_snapshot(5),
    "replace": lambda session: session._atomic_replace_items([]),
}


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
async def test_nothing_is_done_before_a_run_has_said_who_it_is(
    session: MetadataSession, call: Callable[[MetadataSession], Any]
) -> None:
    with pytest.raises(UserUnknown):
        await call(session)


async def test_a_user_given_beforehand_must_be_that_of_the_run(store: MetadataStore) -> None:
    session = store.session("s", user_id="alice", user_from=of_request)
    await session.add_items(users("a"))
    await session.add_items(users("b"), wrapper=run_of("alice"))
    with pytest.raises(UserMismatch):
        await session.get_items(wrapper=run_of("bob"))
    mine = store.as_user("alice").session("s", user_from=of_request)
    assert await mine.get_items(wrapper=run_of("alice")) == users("a", "b")


async def test_without_user_from_a_run_does_not_matter(store: MetadataStore) -> None:
    session = store.session("s")
    await ask(session, "alice")
    assert session.user_id is None
    assert [entry.type for entry in await session.history()] == ["items_added", "items_added"]


# --- Within upstream's wrappers -----------------------------------------------------------------


async def test_an_encrypted_session_hands_the_run_on(
    store: MetadataStore, session: MetadataSession
) -> None:
    await ask(encrypted(session), "alice")
    assert session.user_id == "alice"
    with pytest.raises(UserMismatch):
        await ask(encrypted(session), "bob")
    with pytest.raises(SessionNotFound):
        await ask(encrypted(store.session("s", user_from=of_request)), "bob")
    assert kinds(await encrypted(session).get_items()) == ["user", "message"]


@pytest.mark.parametrize("wrap", [compacting, lambda inner, api: compacting(encrypted(inner), api)])
async def test_a_compaction_session_does_not_and_then_nothing_is_reached(
    store: MetadataStore, session: MetadataSession, wrap: Callable[..., Any]
) -> None:
    with pytest.raises(UserUnknown, match="compaction"):
        await ask(wrap(session, FakeResponses()), "alice")
    assert await store.session("s").history() == []


async def test_a_bound_session_is_compacted_for_its_user(
    store: MetadataStore, engine: AsyncEngine
) -> None:
    api = FakeResponses()
    bob = store.session("s", user_id="bob")
    await bob.add_items(users("bob's"))
    alice = MetadataSession("s", engine=engine, user_id="alice")
    assert await alice._get_compaction_snapshot(5) is not None
    for session, owner in ((bob, "bob"), (alice, "alice")):
        wrapped = compacting(session, api, after=1)
        if owner == "bob":
            await ask(wrapped, owner)
        else:
            with pytest.raises(SessionNotFound):
                await ask(wrapped, owner)
    assert len(api.calls) == 1
    with pytest.raises(SessionNotFound):
        await alice._atomic_replace_items([user("alice's")])
    snapshot = await bob._get_compaction_snapshot(1)
    assert snapshot is not None
    await bob.transfer("eve")
    assert await snapshot.replace_suffix(0, users("late")) is False
    assert kinds(await store.session("s").get_items())[-1] == "compaction"
