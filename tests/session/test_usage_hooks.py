"""`UsageHooks` as a block: what a run has used is recorded, whatever the run's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    MaxTurnsExceeded,
    OutputGuardrailTripwireTriggered,
    Runner,
    Tool,
    function_tool,
    output_guardrail,
)
from agents.testing import ModelStep, ScriptedModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from eventmeta import InvalidInput, MetadataSession, MetadataStore, UsageHooks, UsageTotals
from tests.session.test_usage import rows, structured
from tests.session.test_usage_runs import QUIET, calls, says
from tests.support.backends import Backend
from tests.support.helpers import refuse

pytestmark = pytest.mark.each_dialect

__all__ = ["structured"]


def hanging(reached: asyncio.Event) -> Tool:
    """A tool that waits for ever, once it has said that it was called."""

    @function_tool
    async def hang(city: str) -> str:
        reached.set()
        await asyncio.sleep(3600)
        return city

    return hang


@function_tool
async def echo(city: str) -> str:
    """Repeat it."""
    return city


@function_tool(failure_error_function=None)
async def break_down(city: str) -> str:
    """Fail."""
    raise ConnectionError(city)


@output_guardrail
async def forbid(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


def clerk(*steps: ModelStep, tool: Tool = break_down, **options: Any) -> Agent[Any]:
    return Agent(name="clerk", model=ScriptedModel(steps), tools=[tool, echo], **options)


@pytest.fixture
def session(structured: MetadataStore) -> MetadataSession:
    return structured.session("alpha")


async def run(agent: Agent[Any], session: MetadataSession, **options: Any) -> Any:
    async with UsageHooks() as hooks:
        return await Runner.run(
            agent, "Hi", session=session, run_config=QUIET, hooks=hooks, **options
        )


async def test_a_tool_that_fails(session: MetadataSession) -> None:
    with pytest.raises(Exception, match="Rome"):
        await run(clerk(calls("break_down", 5, "Rome")), session)
    assert (await session.get_usage()).input_tokens == 5


async def test_a_guardrail(session: MetadataSession) -> None:
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await run(clerk(says("Secret.", 5), output_guardrails=[forbid]), session)
    assert (await session.get_usage()).input_tokens == 5


async def test_too_many_turns(session: MetadataSession) -> None:
    with pytest.raises(MaxTurnsExceeded):
        await run(clerk(calls("echo", 7, "Rome")), session, max_turns=1)
    assert (await session.get_usage()).input_tokens == 7


async def test_a_cancellation(
    session: MetadataSession, structured: MetadataStore, engine: AsyncEngine
) -> None:
    """Of a run that has said nothing in its session since the model answered."""
    reached = asyncio.Event()
    agent = clerk(calls("hang", 5, "Rome"), tool=hanging(reached))
    task = asyncio.create_task(run(agent, session))
    await reached.wait()
    others = asyncio.gather(  # so that it has to wait for the writer
        *(structured.session(f"s{n}").set_metadata({"k": n}) for n in range(3))
    )
    await asyncio.sleep(0)
    while not task.done():  # as a cancelled scope of anyio does it
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await others
    assert (await session.get_usage()).input_tokens == 5
    assert await rows(engine, "agent", "input_tokens") == [("clerk", 5)]
    async with engine.connect() as connection:
        question = await connection.scalar(text("SELECT min(id) FROM agent_messages"))
    assert await rows(engine, "user_message_id") == [question]


async def test_a_cancellation_of_several_runs(structured: MetadataStore) -> None:
    """All of one block, which is cancelled again and again while it records them."""
    sessions = [structured.session(f"s{n}") for n in range(3)]
    reached = [asyncio.Event() for _ in sessions]

    async def request() -> None:
        async with UsageHooks() as hooks:
            await asyncio.gather(
                *(
                    Runner.run(
                        clerk(calls("hang", 5, "Rome"), tool=hanging(event)),
                        "Hi",
                        session=session,
                        run_config=QUIET,
                        hooks=hooks,
                    )
                    for session, event in zip(sessions, reached, strict=True)
                )
            )

    task = asyncio.create_task(request())
    for event in reached:
        await event.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert [(await session.get_usage()).input_tokens for session in sessions] == [5, 5, 5]


async def test_a_run_that_ends_well_is_recorded_once(session: MetadataSession) -> None:
    result = await run(clerk(says("Hello.", 5)), session)
    await session.store_run_usage(result)
    assert await session.get_usage() == UsageTotals.of(result.context_wrapper.usage)
    assert [entry.type for entry in await session.history()].count("usage_recorded") == 1


async def test_a_streamed_run_goes_on_after_the_block(session: MetadataSession) -> None:
    """As it does where a client has gone and nobody cancels it; then it fails."""
    agent = clerk(says("Secret.", 5), output_guardrails=[forbid])
    async with UsageHooks() as hooks:
        result = Runner.run_streamed(agent, "Hi", session=session, run_config=QUIET, hooks=hooks)
    with pytest.raises(OutputGuardrailTripwireTriggered):
        async for _ in result.stream_events():
            pass
    assert (await session.get_usage()).input_tokens == 5


async def test_a_client_that_is_gone(session: MetadataSession) -> None:
    reached = asyncio.Event()

    async def answer(request: Any) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            async with UsageHooks() as hooks:
                result = Runner.run_streamed(
                    clerk(calls("hang", 5, "Rome"), tool=hanging(reached)),
                    "Hi",
                    session=session,
                    run_config=QUIET,
                    hooks=hooks,
                )
                async for event in result.stream_events():
                    yield f"{event.type}\n"

        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/", answer)])

    async def receive() -> dict[str, Any]:
        await reached.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    async with asyncio.timeout(10):
        await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.0"}}, receive, send)
    assert (await session.get_usage()).input_tokens == 5


async def test_a_failure_to_record_hides_no_result(
    session: MetadataSession,
    engine: AsyncEngine,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await session.add_items([{"role": "user", "content": "Hi"}])
    await refuse(engine, backend, "usage_recorded")
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await run(clerk(says("Secret.", 5), output_guardrails=[forbid]), session)
    assert "is not recorded yet" in caplog.text


async def test_without_a_session_there_is_nothing_to_do(session: MetadataSession) -> None:
    async with UsageHooks() as hooks:
        await Runner.run(clerk(says("Hello.", 5)), "Hi", run_config=QUIET, hooks=hooks)
    assert await session.get_usage() == UsageTotals()


async def test_without_the_tables_there_is_nothing_to_do(store: MetadataStore) -> None:
    session = store.session("alpha")
    await run(clerk(says("Hello.", 5)), session)
    assert [entry.type for entry in await session.history()] == ["items_added"] * 2


async def test_hooks_serve_one_block() -> None:
    hooks = UsageHooks()
    async with hooks:
        pass
    with pytest.raises(InvalidInput, match=r"make new UsageHooks\(\)"):
        async with hooks:
            pass
