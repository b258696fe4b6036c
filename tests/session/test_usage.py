"""What runs use is recorded without any call by the app, each token once."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from agents import RunContextWrapper
from agents.testing import assistant_message
from agents.usage import Usage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import (
    DatabaseFailure,
    MetadataSession,
    MetadataStore,
    OutcomeUnknown,
    StructuredMetadataOff,
    UsageTotals,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from eventmeta.session.usage_ledger import UsageLedger
from tests.support.backends import Backend
from tests.support.helpers import refuse, users

pytestmark = pytest.mark.each_dialect

ANSWER: list[Any] = [assistant_message("Hello.").model_dump(exclude_unset=True)]


def usage(tokens: int, requests: int = 1) -> Usage:
    return Usage(
        requests=requests,
        input_tokens=tokens,
        output_tokens=2 * tokens,
        total_tokens=3 * tokens,
        input_tokens_details=InputTokensDetails.model_validate(
            {"cached_tokens": tokens // 2, "cache_write_tokens": 1}
        ),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=tokens // 3),
    )


def run() -> RunContextWrapper[Any]:
    return RunContextWrapper(context=None)


@pytest.fixture
async def structured(engine: AsyncEngine) -> Any:
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    yield store
    assert await verify_projection(store) == []


@pytest.fixture
def session(structured: MetadataStore) -> MetadataSession:
    return structured.session("alpha")


async def rows(engine: AsyncEngine, *columns: str) -> list[Any]:
    async with engine.connect() as connection:
        found = await connection.execute(
            text(f"SELECT {', '.join(columns)} FROM agent_usage ORDER BY id")
        )
        return [row[0] if len(columns) == 1 else tuple(row) for row in found]


async def test_what_was_used_since_the_last_items_is_recorded(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    wrapper = run()
    question = await session.add_items(users("Hi"), wrapper=wrapper)
    assert await rows(engine, "id") == []
    wrapper.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=wrapper)
    wrapper.usage.add(usage(4))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await rows(engine, "user_message_id", "input_tokens") == [
        (question.data["item_ids"][0], 10),
        (question.data["item_ids"][0], 4),
    ]
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)
    assert len({*await rows(engine, "run_id")}) == 1
    types = [entry.type for entry in await session.history()]
    assert types == ["items_added", *("items_added", "usage_recorded") * 2]


async def test_the_same_usage_is_recorded_once(session: MetadataSession) -> None:
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(10))
    event_id = new_event_id()
    for _ in range(3):
        await session.add_items(ANSWER, wrapper=wrapper, event_id=event_id)
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


async def test_calls_at_the_same_time_share_what_was_used(session: MetadataSession) -> None:
    wrapper = run()
    wrapper.usage.add(usage(10))
    await asyncio.gather(*(session.add_items(ANSWER, wrapper=wrapper) for _ in range(20)))
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)
    assert len(await session.get_items()) == 20


async def test_the_items_say_which_run_they_are_of(session: MetadataSession) -> None:
    first, second = run(), run()
    for wrapper in (first, first, second):
        await session.add_items(users("Hi"), wrapper=wrapper)
    ids = [entry.event.context["run_id"] for entry in await session.history()]
    assert ids[0] == ids[1] != ids[2]


async def test_without_structured_metadata_nothing_is_recorded(store: MetadataStore) -> None:
    session = store.session("alpha")
    wrapper = run()
    wrapper.usage.add(usage(10))
    await session.add_items(users("Hi"), wrapper=wrapper)
    (entry,) = await session.history()
    assert entry.event.context == {}
    with pytest.raises(StructuredMetadataOff, match=r"get_usage.*structured_metadata=True"):
        await session.get_usage()
    with pytest.raises(StructuredMetadataOff):
        await store.get_usage()
    with pytest.raises(StructuredMetadataOff):
        await session.get_turn_usage()


# --- Failures -----------------------------------------------------------------------------------


async def test_items_whose_usage_cannot_be_recorded_are_not_added(
    session: MetadataSession, engine: AsyncEngine, backend: Backend
) -> None:
    """Nor is the usage lost: it is recorded when they are."""
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    await refuse(engine, backend, "usage_recorded")
    wrapper.usage.add(usage(10))
    with pytest.raises(DatabaseFailure, match="not in this database"):
        await session.add_items(ANSWER, wrapper=wrapper)
    assert len(await session.get_items()) == 1
    async with engine.begin() as connection:
        table = " ON agent_events" if backend.name == "postgresql" else ""
        await connection.exec_driver_sql(f"DROP TRIGGER refuse{table}")
    wrapper.usage.add(usage(5))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_lost_answer_is_asked_for_again(
    session: MetadataSession, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """Whether the events were recorded or not; and copies of the usage do not count it again."""
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(10))
    submit = session._log.submit

    async def lossy(command: Any, *given: Any) -> Any:
        if recorded:
            await submit(command, *given)
        raise OutcomeUnknown("lost")

    event_id = new_event_id()
    monkeypatch.setattr(session._log, "submit", lossy)
    with pytest.raises(OutcomeUnknown):
        await session.add_items(ANSWER, wrapper=wrapper, event_id=event_id)
    monkeypatch.undo()
    await session.add_items(ANSWER, wrapper=wrapper, event_id=event_id)
    assert len(await session.get_items()) == 2
    assert (await session.get_usage()).input_tokens == 10
    resumed = wrapper._copy_for_run_state()
    wrapper.usage.add(usage(1))
    resumed.usage.add(usage(100))
    await session.add_items(ANSWER, wrapper=resumed)
    assert (await session.get_usage()).input_tokens == 110
    await session.add_items(ANSWER, wrapper=wrapper)
    assert (await session.get_usage()).input_tokens == 111


async def test_a_cancelled_call_loses_nothing(session: MetadataSession) -> None:
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    for turns in range(40):
        wrapper.usage.add(usage(1))
        task = asyncio.create_task(session.add_items(ANSWER, wrapper=wrapper))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


async def test_items_that_are_refused_leave_the_usage_for_later(session: MetadataSession) -> None:
    wrapper = run()
    wrapper.usage.add(usage(1))
    with pytest.raises(VersionConflict):
        await session.add_items(ANSWER, wrapper=wrapper, expected_version=7)
    assert await session.get_usage() == UsageTotals()
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


async def test_a_rollback_of_the_caller_takes_no_usage_away(
    session: MetadataSession, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is anything tried beside the caller's transaction, which would be in its way."""
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(1))
    async with engine.connect() as connection:
        await session.add_items(ANSWER, wrapper=wrapper, connection=connection)
        count = text("SELECT count(*) FROM agent_usage")
        assert await connection.scalar(count) == 1
        await connection.rollback()
    assert caplog.text == ""
    assert await session.get_usage() == UsageTotals()
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


# --- Copies and other wrappers ------------------------------------------------------------------


async def test_two_runs_from_one_state_both_count(session: MetadataSession) -> None:
    first = run()
    await session.add_items(users("Hi"), wrapper=first)
    first.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=first)
    for _ in range(2):
        resumed = first._copy_for_run_state()
        resumed.usage.add(usage(5))
        await session.add_items(ANSWER, wrapper=resumed)
    assert (await session.get_usage()).input_tokens == 20
    events = [entry.event for entry in await session.history()]
    assert len({event.data["run_id"] for event in events if "run_id" in event.data}) == 1


async def test_usage_stays_a_plain_value(session: MetadataSession) -> None:
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert pickle.loads(pickle.dumps(wrapper.usage)) == wrapper.usage
    assert copy.deepcopy(wrapper.usage) == wrapper.usage
    assert "ledger" not in repr(wrapper.usage)


async def test_an_agent_as_a_tool_shares_the_run(
    structured: MetadataStore, engine: AsyncEngine
) -> None:
    """What was used before it began is of the run that called it."""
    outer, nested = structured.session("outer"), structured.session("nested")
    wrapper = run()
    await outer.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(10))
    inner = wrapper._fork_with_tool_input(None)
    await nested.add_items(users("Do it"), wrapper=inner)
    inner.usage.add(usage(7))
    await nested.add_items(ANSWER, wrapper=inner)
    wrapper.usage.add(usage(1))
    await outer.add_items(ANSWER, wrapper=wrapper)
    assert await rows(engine, "session_id", "input_tokens") == [
        ("outer", 10),
        ("nested", 7),
        ("outer", 1),
    ]
    assert len({*await rows(engine, "run_id")}) == 1


@pytest.mark.parametrize("restored", [0, 5])
async def test_a_usage_from_elsewhere_goes_on_where_its_run_was(
    structured: MetadataStore, engine: AsyncEngine, restored: int
) -> None:
    """Also if it has used more before the session sees it, and others have run meanwhile."""
    session = structured.session("alpha")
    runs = [run(), run(), run()]
    for n, wrapper in enumerate(runs):
        await session.add_items(users("Hi"), wrapper=wrapper)
        wrapper.usage.add(usage(10 + n))
        await session.add_items(ANSWER, wrapper=wrapper)
    resumed = run()
    resumed.usage = pickle.loads(pickle.dumps(runs[1].usage))
    if restored:
        resumed.usage.add(usage(restored))
    await structured.session("alpha").add_items(ANSWER, wrapper=resumed)
    resumed.usage.add(usage(3))
    await structured.session("alpha").add_items(ANSWER, wrapper=resumed)
    ids = await rows(engine, "run_id")
    assert (await session.get_usage(run_id=ids[1])) == UsageTotals.of(resumed.usage)
    assert (await session.get_usage()).input_tokens == 33 + restored + 3


async def test_a_usage_that_no_run_here_reached_is_a_new_run(session: MetadataSession) -> None:
    first, second = run(), run()
    await session.add_items(users("Hi"), wrapper=first)
    first.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=first)
    second.usage.add(usage(20))
    second.usage.add(usage(30))
    await session.add_items(ANSWER, wrapper=second)
    assert (await session.get_usage()).input_tokens == 60


async def test_a_run_is_known_from_its_first_look_at_the_session(session: MetadataSession) -> None:
    """So that one which uses just what another did is not taken for it."""
    for _ in range(2):
        wrapper = run()
        await session.get_items(wrapper=wrapper)
        wrapper.usage.add(usage(10))
        await session.add_items(ANSWER, wrapper=wrapper)
    assert (await session.get_usage()).input_tokens == 20


async def test_the_last_user_message_is_found_without_the_run_that_brought_it(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    added = await session.add_items([*users("Hi"), *ANSWER * 100])
    wrapper = run()
    wrapper.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await rows(engine, "user_message_id") == [added.data["item_ids"][0]]


@pytest.mark.parametrize("odd", [None, -1, 1.5, float("nan"), float("inf"), 2**80, "7"])
async def test_odd_numbers_of_a_provider_neither_fail_nor_stop_the_items(
    session: MetadataSession, odd: Any
) -> None:
    wrapper = run()
    await session.add_items(users("a"), wrapper=wrapper)
    wrapper.usage.add(usage(6))
    wrapper.usage.output_tokens = odd
    vars(wrapper.usage)["output_tokens_details"] = None
    await session.add_items(ANSWER, wrapper=wrapper)
    assert len(await session.get_items()) == 2
    assert (await session.get_usage()).input_tokens == 6


async def test_usage_without_a_place_does_not_hold_up_the_rest(
    structured: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be recorded in time belongs to a session that is another user's by now."""
    wrapper = run()
    hers = structured.session("hers", user_id="alice")
    await hers.add_items(users("a"), wrapper=wrapper)
    wrapper.usage.add(usage(6))
    with monkeypatch.context() as broken:
        broken.setattr(UsageLedger, "take", lambda *_: [])
        broken.setattr(UsageLedger, "settle", lambda *_, **__: asyncio.sleep(0))
        await hers.add_items(ANSWER, wrapper=wrapper)
    await hers.transfer("bob")
    other = structured.session("other", user_id="alice")
    await other.add_items(users("b"), wrapper=wrapper)
    wrapper.usage.add(usage(3))
    await other.add_items(ANSWER, wrapper=wrapper)
    assert (await other.get_usage()).input_tokens == 3
