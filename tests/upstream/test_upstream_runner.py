"""A real Runner, with a scripted model, keeps its conversation in our session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    ModelSettings,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    RunResultStreaming,
    function_tool,
    output_guardrail,
)
from agents.extensions.memory import SQLAlchemySession
from agents.memory import SessionSettings
from agents.retry import ModelRetrySettings
from agents.run_internal.session_persistence import rewind_session_items
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession, MetadataStore, acting_as, verify_projection
from tests.support.helpers import contents, user, users

QUIET = RunConfig(tracing_disabled=True)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def agent(*steps: Any, **options: Any) -> tuple[Agent, ScriptedModel]:
    model = ScriptedModel(steps)
    return Agent(name="Clerk", model=model, tools=[weather], **options), model


def says(text: str) -> ModelStep:
    return ModelStep(output=[assistant_message(text)])


def calls_weather(city: str) -> ModelStep:
    return ModelStep(output=[function_call("weather", {"city": city}, call_id=f"call-{city}")])


def kinds(items: list[Any]) -> list[str]:
    return [item.get("type") or item["role"] for item in items]


@pytest.fixture
def ours(engine: AsyncEngine) -> MetadataSession:
    return MetadataSession("s", engine=engine, create_tables=True)


@pytest.fixture
async def theirs(engine: AsyncEngine, ours: MetadataSession) -> SQLAlchemySession:
    """Upstream's session beside it, for comparison."""
    await ours.get_items()
    return SQLAlchemySession("upstream", engine=engine)


async def test_a_conversation_with_a_tool(ours: MetadataSession, theirs: SQLAlchemySession) -> None:
    for session in (ours, theirs):
        clerk, model = agent(calls_weather("Rome"), says("Sunny."), says("Rome, again."))
        first = await Runner.run(clerk, "Weather in Rome?", session=session, run_config=QUIET)
        assert first.final_output == "Sunny."
        second = await Runner.run(clerk, "Which city?", session=session, run_config=QUIET)
        assert second.final_output == "Rome, again."
        model.assert_complete()
        assert model.last_call is not None
        assert len(model.last_call.input) == 5
    items = await ours.get_items()
    assert items == await theirs.get_items()
    assert kinds(items) == [
        *("user", "function_call", "function_call_output", "message"),
        *("user", "message"),
    ]


async def test_a_streamed_run(ours: MetadataSession, theirs: SQLAlchemySession) -> None:
    for session in (ours, theirs):
        clerk, model = agent(calls_weather("Rome"), says("Sunny."))
        result = Runner.run_streamed(clerk, "Weather?", session=session, run_config=QUIET)
        assert await drained(result) > 0
        assert result.final_output == "Sunny."
        model.assert_complete()
    assert await ours.get_items() == await theirs.get_items()
    assert len(await ours.get_items()) == 4


async def drained(result: RunResultStreaming) -> int:
    return len([event async for event in result.stream_events()])


async def test_metadata_and_history_beside_a_conversation(ours: MetadataSession) -> None:
    with acting_as("user:ada", run="r1"):
        clerk, _ = agent(says("Hello."), says("Bye."))
        await Runner.run(clerk, "Hi", session=ours, run_config=QUIET)
        await ours.set_metadata({"title": "Greeting"})
        await Runner.run(clerk, "Bye", session=ours, run_config=QUIET)
    history = await ours.history()
    assert [entry.version for entry in history] == list(range(1, len(history) + 1))
    assert {entry.actor for entry in history} == {"user:ada"}
    assert all(entry.event.context == {"run": "r1"} for entry in history)
    added = [id for e in history for id in e.event.data.get("item_ids", ())]
    assert len(added) == len(await ours.get_items()) == 4
    assert await ours.get_metadata() == {"title": "Greeting"}
    assert await verify_projection(MetadataStore(ours.engine)) == []


@pytest.mark.parametrize("of_session", [True, False])
async def test_the_settings_limit_what_the_model_sees(
    ours: MetadataSession, of_session: bool
) -> None:
    await ours.add_items(users(*"abcd"))
    clerk, model = agent(says("ok"))
    limit = SessionSettings(limit=2)
    run_config = QUIET
    if of_session:
        ours.session_settings = limit
    else:
        run_config = RunConfig(tracing_disabled=True, session_settings=limit)
    await Runner.run(clerk, "e", session=ours, run_config=run_config)
    assert model.last_call is not None
    assert contents(model.last_call.input) == ["c", "d", "e"]
    assert len(await ours.get_items(100)) == 6


# --- When a run fails ---------------------------------------------------------------------------


async def same_after_failure(
    ours: MetadataSession,
    theirs: SQLAlchemySession,
    make: Callable[[], Agent],
    error: type[Exception],
) -> list[Any]:
    for session in (ours, theirs):
        with pytest.raises(error):
            await Runner.run(make(), "Weather?", session=session, run_config=QUIET)
    items = await ours.get_items()
    assert items == await theirs.get_items()
    return items


async def test_a_model_that_fails_leaves_what_upstream_leaves(
    ours: MetadataSession, theirs: SQLAlchemySession
) -> None:
    def make() -> Agent:
        return agent(calls_weather("Rome"), ModelStep.raise_error(ConnectionError("down")))[0]

    items = await same_after_failure(ours, theirs, make, ConnectionError)
    assert kinds(items) == ["user", "function_call", "function_call_output"]


async def test_a_guardrail_that_trips_leaves_what_upstream_leaves(
    ours: MetadataSession, theirs: SQLAlchemySession
) -> None:
    @output_guardrail
    async def refuse(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    def make() -> Agent:
        return agent(says("Secret."), output_guardrails=[refuse])[0]

    await same_after_failure(ours, theirs, make, OutputGuardrailTripwireTriggered)


async def test_a_retried_model_call_adds_nothing_twice(
    ours: MetadataSession, theirs: SQLAlchemySession
) -> None:
    retry = ModelRetrySettings(
        max_retries=2, policy=lambda context: True, backoff={"initial_delay": 0.0, "jitter": False}
    )
    for session in (ours, theirs):
        failure = ModelStep.raise_error(ConnectionError("down"))
        clerk, model = agent(failure, says("ok"), model_settings=ModelSettings(retry=retry))
        await Runner.run(clerk, "Hi", session=session, run_config=QUIET)
        model.assert_complete()
    assert await ours.get_items() == await theirs.get_items()
    assert len(await ours.get_items()) == 2


async def test_the_runner_rewinds_a_failed_attempt(
    ours: MetadataSession, theirs: SQLAlchemySession
) -> None:
    """It pops the attempt's own items, if they are still the last ones, and leaves the rest."""
    await ours.set_metadata({"k": 1})
    for session in (ours, theirs):
        await session.add_items(users("kept", "kept too", "attempt", "attempt 2"))
        await rewind_session_items(session, users("attempt", "attempt 2"))
        assert await session.get_items() == users("kept", "kept too")
        await rewind_session_items(session, users("something else"))
        assert await session.get_items() == users("kept", "kept too")
    assert await ours.get_metadata() == {"k": 1}
    types = [entry.type for entry in await ours.history()]
    assert types == ["metadata_set", "items_added", "item_popped", "item_popped"]


async def test_what_is_rewound_can_be_run_again(ours: MetadataSession) -> None:
    attempt = [user("Hi")]
    await ours.add_items(attempt)
    await rewind_session_items(ours, attempt)
    clerk, _ = agent(says("Hello."))
    await Runner.run(clerk, "Hi", session=ours, run_config=QUIET)
    assert kinds(await ours.get_items()) == ["user", "message"]
