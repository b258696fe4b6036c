"""The queries of docs/queries.md, as they are printed there, after real runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    RunConfig,
    Runner,
    RunState,
    Usage,
    function_tool,
)
from agents.retry import ModelRetrySettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession
from tests.support.helpers import user

pytestmark = pytest.mark.each_dialect

QUIET = RunConfig(tracing_disabled=True)
RETRY = ModelRetrySettings(
    max_retries=2, policy=lambda context: True, backoff={"initial_delay": 0.0, "jitter": False}
)
DOCUMENT = (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8")
TURN_BY_TURN, CALL_BY_CALL = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)


async def ask(engine: AsyncEngine, query: str) -> list[dict[str, Any]]:
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    return MetadataSession("alpha", engine=engine, create_tables=True, structured_metadata=True)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@function_tool(needs_approval=True)
def book(city: str) -> str:
    """Book a trip."""
    return f"booked {city}"


def step(*output: Any, tokens: int) -> ModelStep:
    usage = Usage(requests=1, input_tokens=tokens, output_tokens=1, total_tokens=tokens + 1)
    return ModelStep(output=list(output), usage=usage)


def travel_agents(*steps: ModelStep) -> tuple[Agent, ScriptedModel]:
    """A clerk that knows the weather, and hands over to one that books."""
    model = ScriptedModel(steps)
    settings = ModelSettings(retry=RETRY)
    booker = Agent(name="Booker", model=model, model_settings=settings, tools=[book])
    clerk = Agent(
        name="Clerk", model=model, model_settings=settings, tools=[weather], handoffs=[booker]
    )
    return clerk, model


async def run_of_many_parts(session: MetadataSession) -> Usage:
    """Two tools, a handoff, a model call that is retried, and an approval after a restart."""
    clerk, model = travel_agents(
        step(function_call("weather", {"city": "Rome"}, call_id="w1"), tokens=10),
        ModelStep.raise_error(ConnectionError("down")),
        step(
            function_call("weather", {"city": "Oslo"}, call_id="w2"),
            function_call("transfer_to_booker", {}, call_id="h1"),
            tokens=200,
        ),
        step(function_call("book", {"city": "Rome"}, call_id="b1"), tokens=3000),
        step(assistant_message("Booked Rome."), tokens=40000),
    )
    asked = await Runner.run(clerk, "Where is it sunny?", session=session, run_config=QUIET)
    assert len(asked.interruptions) == 1
    state = await RunState.from_json(clerk, json.loads(json.dumps(asked.to_state().to_json())))
    state.approve(state.get_interruptions()[0])
    done = await Runner.run(clerk, state, session=session, run_config=QUIET)
    assert done.final_output == "Booked Rome."
    model.assert_complete()
    return done.context_wrapper.usage


async def test_one_query_from_the_question_to_the_tokens(session: MetadataSession) -> None:
    usage = await run_of_many_parts(session)
    clerk, _ = travel_agents(step(assistant_message("You are welcome."), tokens=7))
    thanks = await Runner.run(clerk, "Thanks!", session=session, run_config=QUIET)
    other = MetadataSession("beta", engine=session.engine, structured_metadata=True)
    await run_of_many_parts(other)

    first, second = await ask(session.engine, TURN_BY_TURN)
    assert json.loads(first["user_message"]) == "Where is it sunny?"
    assert json.loads(first["assistant_message"])[0]["text"] == "Booked Rome."
    assert (first["turn"], first["tool_calls"], first["tools"]) == (1, 4, 3)
    assert tokens(first) == tokens(vars(usage))
    assert usage.total_tokens == 43214, "what the four answers say"
    assert usage.requests == 5, "the failed attempt was one"
    assert json.loads(second["user_message"]) == "Thanks!"
    assert json.loads(second["assistant_message"])[0]["text"] == "You are welcome."
    assert (second["turn"], second["tool_calls"], second["tools"]) == (2, 0, 0)
    assert tokens(second) == tokens(vars(thanks.context_wrapper.usage))


def tokens(row: Any) -> list[int]:
    names = ("requests", "input_tokens", "output_tokens", "total_tokens")
    return [int(row[name]) for name in names]


async def test_one_query_for_all_calls(session: MetadataSession) -> None:
    await run_of_many_parts(session)
    calls = await ask(session.engine, CALL_BY_CALL)
    assert {json.loads(call["user_message"]) for call in calls} == {"Where is it sunny?"}
    assert [(call["tool_name"], call["output"], call["status"]) for call in calls] == [
        ("weather", "sunny in Rome", "completed"),
        ("weather", "sunny in Oslo", "completed"),
        ("transfer_to_booker", '{"assistant": "Booker"}', "completed"),
        ("book", "booked Rome", "completed"),
    ]
    assert {call["turn"] for call in calls} == {1}
    assert json.loads(calls[0]["arguments"]) == {"city": "Rome"}


async def test_a_turn_without_an_answer_is_a_row_too(session: MetadataSession) -> None:
    items: list[Any] = [
        {"role": "assistant", "content": "Before any question."},
        user("One?"),
        {"type": "function_call", "call_id": "1", "name": "search", "arguments": "{}"},
        user("Two?"),
        {"type": "function_call_output", "call_id": "1", "output": "found"},
        {"type": "function_call_output", "call_id": "no call", "output": "lost"},
    ]
    await session.add_items(items)
    turns = await ask(session.engine, TURN_BY_TURN)
    assert [(turn["turn"], turn["tool_calls"], turn["assistant_message"]) for turn in turns] == [
        (1, 1, None),
        (2, 0, None),
    ]
    assert [tokens(turn) for turn in turns] == [[0, 0, 0, 0]] * 2


async def test_each_turn_knows_its_runs(session: MetadataSession) -> None:
    await run_of_many_parts(session)
    clerk, _ = travel_agents(step(assistant_message("You are welcome."), tokens=7))
    await Runner.run(clerk, "Thanks!", session=session, run_config=QUIET)
    first, second = await session.get_turns()
    assert (first.messages, first.tool_calls) == (2, 4)
    (run_id,), (next_run_id,) = first.run_ids, second.run_ids
    assert run_id != next_run_id
    entries = (await session.get_conversation_by_turns())[1]
    assert {entry["run_id"] for entry in entries if entry["status"] or entry["type"] == "user"} == {
        run_id
    }
