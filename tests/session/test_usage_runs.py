"""Real runs: the sums equal the run's own usage, and each response is known where hooks tell."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    ModelSettings,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunHooks,
    Runner,
    RunState,
    Tool,
    function_tool,
    output_guardrail,
)
from agents.extensions.memory import EncryptedSession
from agents.retry import ModelRetrySettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession, MetadataStore, UsageHooks, UsageTotals
from tests.session.test_usage import rows, structured, usage

pytestmark = pytest.mark.each_dialect

__all__ = ["structured"]

QUIET = RunConfig(tracing_disabled=True)
RETRY = ModelSettings(
    retry=ModelRetrySettings(
        max_retries=2, policy=lambda context: True, backoff={"initial_delay": 0.0, "jitter": False}
    )
)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@function_tool
def time_of_day(city: str) -> str:
    """The time in a city."""
    return "noon"


@function_tool(needs_approval=True)
def book(city: str) -> str:
    """Book a journey."""
    return f"booked {city}"


def says(text: str, tokens: int) -> ModelStep:
    return ModelStep(output=[assistant_message(text)], usage=usage(tokens))


def calls(name: str, tokens: int, *cities: str) -> ModelStep:
    output = [function_call(name, {"city": city}, call_id=f"{name}-{city}") for city in cities]
    return ModelStep(output=output, usage=usage(tokens))


def handoff_to(name: str, tokens: int) -> ModelStep:
    return ModelStep(
        output=[function_call(f"transfer_to_{name}", {}, call_id=f"to-{name}")],
        usage=usage(tokens),
    )


def fails() -> ModelStep:
    return ModelStep.raise_error(ConnectionError("down"))


def agent(name: str, *steps: ModelStep, **options: Any) -> Agent[Any]:
    model = ScriptedModel(steps)
    tools: list[Tool] = [weather, time_of_day, book]
    return Agent(name=name, model=model, tools=tools, model_settings=RETRY, **options)


def team() -> Agent[Any]:
    """A clerk who calls two tools and hands over to an expert, who retries and asks first."""
    expert = agent("expert", fails(), calls("book", 13, "Rome"), says("Booked.", 17))
    steps = (calls("weather", 5, "Rome"), calls("time_of_day", 7, "Rome"), handoff_to("expert", 11))
    return agent("clerk", *steps, handoffs=[expert])


@pytest.fixture
def session(structured: MetadataStore) -> MetadataSession:
    return structured.session("alpha")


async def resume(
    clerk: Agent[Any], session: MetadataSession, result: Any, config: RunConfig, hooks: Any
) -> Any:
    """Approve by way of JSON, with a handle on the session that has seen nothing."""
    assert len(result.interruptions) == 1
    state = await RunState.from_json(clerk, json.loads(json.dumps(result.to_state().to_json())))
    state.approve(state.get_interruptions()[0])
    fresh = MetadataSession(session.session_id, engine=session.engine, structured_metadata=True)
    return await Runner.run(clerk, state, session=fresh, run_config=config, hooks=hooks)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
async def test_everything_at_once(
    session: MetadataSession, engine: AsyncEngine, traced: bool, hooked: bool
) -> None:
    clerk = team()
    config = RunConfig(tracing_disabled=not traced)
    hooks = UsageHooks() if hooked else None
    first = await Runner.run(clerk, "Book", session=session, run_config=config, hooks=hooks)
    assert await session.get_usage() == UsageTotals.of(first.context_wrapper.usage)
    last = await resume(clerk, session, first, config, hooks)
    assert last.final_output == "Booked."
    used = last.context_wrapper.usage
    assert (used.requests, used.input_tokens) == (6, 5 + 7 + 11 + 13 + 17)
    assert await session.get_usage() == UsageTotals.of(used)
    found = await rows(engine, "user_message_id", "run_id")
    assert len({*found}) == 1
    (user_message_id, run_id), *_ = found
    async with engine.connect() as connection:
        query = text("SELECT min(id) FROM agent_messages")
        assert await connection.scalar(query) == user_message_id
    assert await session.get_usage(run_id=run_id) == UsageTotals.of(used)
    assert [trace is not None for trace in await rows(engine, "trace_id")] == [traced] * len(found)
    if hooked:
        assert await rows(engine, "agent", "model", "requests", "input_tokens") == [
            ("clerk", "ScriptedModel", 1, 5),
            ("clerk", "ScriptedModel", 1, 7),
            ("clerk", "ScriptedModel", 1, 11),
            ("expert", "ScriptedModel", 2, 13),
            ("expert", "ScriptedModel", 1, 17),
        ]
    await session.store_run_usage(last)
    await session.store_run_usage(last)
    assert await session.get_usage() == UsageTotals.of(used)


async def test_a_streamed_run(session: MetadataSession, engine: AsyncEngine) -> None:
    clerk = agent("clerk", calls("weather", 5, "Rome"), fails(), says("Sunny.", 7))
    result = Runner.run_streamed(
        clerk, "Weather?", session=session, run_config=QUIET, hooks=UsageHooks()
    )
    async for _ in result.stream_events():
        pass
    assert result.context_wrapper.usage.requests == 3
    assert await session.get_usage() == UsageTotals.of(result.context_wrapper.usage)
    ids = await rows(engine, "response_id")
    assert ids == [response.response_id for response in result.raw_responses]


async def test_runs_at_the_same_time_on_one_session(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    def start(n: int) -> Any:
        clerk = agent("clerk", calls("weather", n, "Rome"), says("Sunny.", 2 * n))
        return Runner.run(clerk, f"Weather {n}?", session=session, run_config=QUIET)

    results = await asyncio.gather(*(start(10**n) for n in range(5)))
    for result in results:
        used = UsageTotals.of(result.context_wrapper.usage)
        found = await rows(engine, "run_id", "input_tokens", "user_message_id")
        (run_id,) = {run for run, tokens, _ in found if tokens == used.input_tokens // 3}
        assert await session.get_usage(run_id=run_id) == used
        (message_id,) = {message for run, _, message in found if run == run_id}
        async with engine.connect() as connection:
            query = text("SELECT message_data FROM agent_messages WHERE id = :id")
            said = await connection.scalar(query, {"id": message_id})
        assert json.loads(said)["content"] == f"Weather {used.input_tokens // 3}?"


async def test_an_agent_as_a_tool_with_a_session_of_its_own(
    structured: MetadataStore, session: MetadataSession
) -> None:
    nested = structured.session("nested")
    expert = agent("expert", says("Sunny.", 7))
    tool = expert.as_tool("ask", "Ask.", session=nested, run_config=QUIET)
    clerk = Agent(
        name="clerk",
        model=ScriptedModel(
            [
                ModelStep(
                    output=[function_call("ask", {"input": "Weather?"}, call_id="1")],
                    usage=usage(5),
                ),
                says("It is sunny.", 3),
            ]
        ),
        tools=[tool],
    )
    result = await Runner.run(clerk, "Weather?", session=session, run_config=QUIET)
    assert (await nested.get_usage()).input_tokens == 7
    assert (await session.get_usage()).input_tokens == 8
    (whole,) = await structured.get_usage()
    assert whole.total_tokens == result.context_wrapper.usage.total_tokens


async def test_a_run_behind_encryption(session: MetadataSession) -> None:
    wrapped = EncryptedSession("alpha", cast(Any, session), encryption_key="k")
    clerk = agent("clerk", calls("weather", 5, "Rome"), says("Sunny.", 7))
    result = await Runner.run(clerk, "Weather?", session=wrapped, run_config=QUIET)
    assert await session.get_usage() == UsageTotals.of(result.context_wrapper.usage)


# --- Hooks and store_run_usage ------------------------------------------------------------------


async def test_the_hooks_call_those_of_the_app(session: MetadataSession) -> None:
    called: list[str] = []

    class Mine(RunHooks[Any]):
        async def on_llm_start(self, *arguments: Any) -> None:
            called.append("llm start")

        async def on_llm_end(self, *arguments: Any) -> None:
            called.append("llm end")

        async def on_agent_start(self, *arguments: Any) -> None:
            called.append("agent start")

        async def on_agent_end(self, *arguments: Any) -> None:
            called.append("agent end")

        async def on_handoff(self, *arguments: Any) -> None:
            called.append("handoff")

        async def on_tool_start(self, *arguments: Any) -> None:
            called.append("tool start")

        async def on_tool_end(self, *arguments: Any) -> None:
            called.append("tool end")

    expert = agent("expert", calls("weather", 1, "Rome"), says("Sunny.", 1))
    clerk = agent("clerk", handoff_to("expert", 1), handoffs=[expert])
    hooks = UsageHooks(Mine(), model="gpt-x")
    await Runner.run(clerk, "Weather?", session=session, run_config=QUIET, hooks=hooks)
    llm = ["llm start", "llm end"]
    assert called == [
        *("agent start", *llm, "handoff", "agent start", *llm),
        *("tool start", "tool end", *llm, "agent end"),
    ]


@pytest.mark.parametrize(
    ("model", "name"), [("gpt-x", "gpt-x"), (ScriptedModel([]), "ScriptedModel")]
)
async def test_the_hooks_know_the_model(model: Any, name: str) -> None:
    from eventmeta.session.hooks import _model_of

    assert _model_of(Agent(name="clerk", model=model)) == name
    assert _model_of(Agent(name="clerk")).startswith("gpt")


async def test_a_run_without_the_session_can_be_stored(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    """As often as one likes, and not mistaken for one that resumes the run before."""
    results = []
    for n in (1, 2):
        clerk = agent("clerk", calls("weather", 5 * n, "Rome"), says("Sunny.", 7 * n))
        results.append(await Runner.run(clerk, "Weather?", run_config=QUIET))
    for result in results * 2:
        await session.store_run_usage(result)
    assert await rows(engine, "input_tokens", "response_id") == [
        (response.usage.input_tokens, response.response_id)
        for result in results
        for response in result.raw_responses
    ]
    assert len({*await rows(engine, "run_id")}) == 2


async def test_what_a_failed_run_has_used_can_be_stored(session: MetadataSession) -> None:
    @output_guardrail
    async def forbid(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    clerk = agent(
        "clerk", calls("weather", 5, "Rome"), says("Secret.", 7), output_guardrails=[forbid]
    )
    with pytest.raises(OutputGuardrailTripwireTriggered) as caught:
        await Runner.run(clerk, "Weather?", session=session, run_config=QUIET)
    assert caught.value.run_data is not None
    await session.store_run_usage(caught.value.run_data)
    assert (await session.get_usage()).input_tokens == 12


async def test_the_usage_of_a_turn(session: MetadataSession) -> None:
    for n in (1, 2):
        clerk = agent("clerk", calls("weather", 5 * n, "Rome"), says("Sunny.", 7 * n))
        await Runner.run(clerk, "Weather?", session=session, run_config=QUIET)
    assert (await session.get_usage(turn=1)).input_tokens == 12
    assert (await session.get_usage(turn=2)).input_tokens == 24
    assert await session.get_usage(turn=3) == UsageTotals()
    turns = await session.get_turn_usage()
    assert isinstance(turns, list)
    assert [turn["user_turn_number"] for turn in turns] == [1, 2]
    assert await session.get_turn_usage(2) == {
        "requests": 2,
        "input_tokens": 24,
        "output_tokens": 48,
        "total_tokens": 72,
        "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 7},
    }
    assert await session.get_turn_usage(3) == {}
