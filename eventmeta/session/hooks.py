"""Hooks that tell the session which model, agent and response the tokens of a run went to.

Imports the SDK, so it is imported only when an app asks for it.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self

from agents import Agent, ModelResponse, RunContextWrapper, RunHooks, Tool, TResponseInputItem
from agents.models import get_default_model
from agents.run_context import AgentHookContext
from agents.usage import Usage

from eventmeta.core.errors import EventMetaError, InvalidInput
from eventmeta.core.settle import run_to_completion
from eventmeta.core.usage import UsageTotals
from eventmeta.session.resumed_runs import usable_name
from eventmeta.session.usage_ledger import UsageShare, ledger_of

_logger = logging.getLogger("eventmeta")


class UsageHooks(RunHooks[Any]):
    """Record usage response by response, and at the end of the run whatever its end.

    ::

        async with UsageHooks() as hooks:
            result = await Runner.run(agent, "Hello", session=session, hooks=hooks)

    Without hooks a session records what came to the run's usage since it last looked, as one sum.
    With them there is one event for each response, with its id, model and agent, and one for what
    remains. The sums are the same.

    At the end of the block, what the runs have used and did not record with their items is recorded
    in their sessions: by an error, a guardrail, a limit of turns, a cancellation, or a client that
    is gone. A cancelled block ends only when that is done. If the database cannot do it, that is
    logged, and `store_run_usage` may do it later. What a streamed run uses after the end of the
    block is recorded with each response. Without the block, only what is recorded with the items of
    a run, or by `store_run_usage`, is known.
    """

    def __init__(self, inner: RunHooks[Any] | None = None, *, model: str | None = None) -> None:
        """Make the hooks; one object may serve any number of runs, and one block.

        Args:
            inner: The app's own hooks, which are called as well.
            model: The model, where a ``RunConfig`` puts another in the place of the agents' own:
                hooks are not told of that.
        """
        self._inner = inner or RunHooks[Any]()
        self._model = model
        self._used: list[Usage] | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        """Begin to note runs.

        Raises:
            InvalidInput: The hooks were used in a block before.
        """
        if self._used is not None:
            raise InvalidInput("these hooks were used in a block before: make new UsageHooks()")
        self._used = []
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record what the runs have used by now."""
        self._ended = True
        for usage in self._used or ():
            await run_to_completion(_finish(usage))

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        """Know the run from its beginning."""
        ledger_of(context.usage)
        if self._used is not None and all(usage is not context.usage for usage in self._used):
            self._used.append(context.usage)
        await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """Note what the response has used, for the session to record with its items."""
        share = UsageShare(
            UsageTotals.of(response.usage),
            response_id=usable_name(response.response_id),
            model=usable_name(self._model or _model_of(agent)),
            agent=usable_name(agent.name),
        )
        ledger_of(context.usage).shares.append(share)
        if self._ended:
            await _finish(context.usage)
        await self._inner.on_llm_end(context, agent, response)

    async def on_agent_start(self, context: AgentHookContext[Any], agent: Agent[Any]) -> None:
        """As the app's own hooks say."""
        await self._inner.on_agent_start(context, agent)

    async def on_agent_end(
        self, context: AgentHookContext[Any], agent: Agent[Any], output: Any
    ) -> None:
        """As the app's own hooks say."""
        await self._inner.on_agent_end(context, agent, output)

    async def on_handoff(
        self, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]
    ) -> None:
        """As the app's own hooks say."""
        await self._inner.on_handoff(context, from_agent, to_agent)

    async def on_tool_start(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool
    ) -> None:
        """As the app's own hooks say."""
        await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object
    ) -> None:
        """As the app's own hooks say."""
        await self._inner.on_tool_end(context, agent, tool, result)


async def _finish(usage: Usage) -> None:
    """Record what is left, so that an error neither hides the result of the run nor its own."""
    ledger = ledger_of(usage)
    if ledger.finish is None:
        return
    try:
        await ledger.finish(usage)
    except EventMetaError as error:
        _logger.warning("the usage of run %s is not recorded yet: %s", ledger.run_id, error)


def _model_of(agent: Agent[Any]) -> str:
    """The name of the agent's model; of a model without one, its type."""
    model = agent.model
    if model is None:
        return get_default_model()
    if isinstance(model, str):
        return model
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__
