"""Hooks that record which model, agent and response used the tokens of a run.

This module imports the Agents SDK, so it is imported only when an app asks for it.
"""

from __future__ import annotations

import asyncio
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
    """Hooks of a run that record its usage response by response, however the run ends.

    ::

        async with UsageHooks() as hooks:
            result = await Runner.run(agent, "Hello", session=session, hooks=hooks)

    Without hooks, a session records one sum: the run's usage since the last record. With hooks,
    there is one event for each response, with its id, model and agent, and one for the remainder.
    The sums are the same.

    A run may end without recording all its usage with its items: after an error, a guardrail, a
    limit of turns, a cancellation, or when a client is gone. The end of the block records the rest
    in the run's session. A cancelled block ends only when that is done. If the database cannot
    record it, a warning is logged, and `store_run_usage` may record it later. If a streamed run
    goes on after the end of the block, its usage is recorded with each response. Without the
    block, usage is recorded only with the items of a run or by `store_run_usage`.
    """

    def __init__(self, inner: RunHooks[Any] | None = None, *, model: str | None = None) -> None:
        """Make the hooks. One object serves any number of runs, but only one block.

        Args:
            inner: The app's own hooks, which are called as well.
            model: The name of the model, if a ``RunConfig`` replaces the models of the agents. The
                SDK does not pass that model to hooks.
        """
        self._inner = inner or RunHooks[Any]()
        self._model = model
        self._used: list[Usage] | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        """Begin the block: remember the runs that use these hooks.

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
        """Record what the runs have used so far."""
        self._ended = True
        await run_to_completion(asyncio.gather(*map(_finish, self._used or ())))

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        """Attach a ledger to the run's usage before its first request."""
        ledger_of(context.usage)
        if self._used is not None and all(usage is not context.usage for usage in self._used):
            self._used.append(context.usage)
        await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """Enter what the response has used, so that the session records it with its items."""
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
        """Call the app's own hook."""
        await self._inner.on_agent_start(context, agent)

    async def on_agent_end(
        self, context: AgentHookContext[Any], agent: Agent[Any], output: Any
    ) -> None:
        """Call the app's own hook."""
        await self._inner.on_agent_end(context, agent, output)

    async def on_handoff(
        self, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]
    ) -> None:
        """Call the app's own hook."""
        await self._inner.on_handoff(context, from_agent, to_agent)

    async def on_tool_start(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool
    ) -> None:
        """Call the app's own hook."""
        await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object
    ) -> None:
        """Call the app's own hook."""
        await self._inner.on_tool_end(context, agent, tool, result)


async def _finish(usage: Usage) -> None:
    """Record the rest of a run's usage; log a failure.

    A failure here must hide neither the result of the run nor the run's own error.
    """
    ledger = ledger_of(usage)
    if ledger.finish is None:
        return
    try:
        await ledger.finish(usage)
    except EventMetaError as error:
        _logger.warning("the usage of run %s is not recorded yet: %s", ledger.run_id, error)


def _model_of(agent: Agent[Any]) -> str:
    """Return the name of the agent's model, or the type of a model without a name."""
    model = agent.model
    if model is None:
        return get_default_model()
    if isinstance(model, str):
        return model
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__
