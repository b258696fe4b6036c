"""Hooks that tell the session which model, agent and response the tokens of a run went to.

Imports the SDK, so it is imported only when an app asks for it.
"""

from __future__ import annotations

from typing import Any

from agents import Agent, ModelResponse, RunContextWrapper, RunHooks, Tool, TResponseInputItem
from agents.models import get_default_model
from agents.run_context import AgentHookContext

from eventmeta.run_usage import Share, ledger_of, usable_name
from eventmeta.usage import UsageTotals


class UsageHooks(RunHooks[Any]):
    """Record usage response by response: ``Runner.run(…, session=session, hooks=UsageHooks())``.

    Without them a session records what came to the run's usage since it last looked, as one sum.
    With them there is one event for each response, with its id, model and agent, and one for what
    remains. The sums are the same.
    """

    def __init__(self, inner: RunHooks[Any] | None = None, *, model: str | None = None) -> None:
        """Make the hooks; one object may serve any number of runs.

        Args:
            inner: The app's own hooks, which are called as well.
            model: The model, where a ``RunConfig`` puts another in the place of the agents' own:
                hooks are not told of that.
        """
        self._inner = inner or RunHooks[Any]()
        self._model = model

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        """Know the run from its beginning."""
        ledger_of(context.usage)
        await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """Note what the response has used, for the session to record with its items."""
        share = Share(
            UsageTotals.of(response.usage),
            response_id=usable_name(response.response_id),
            model=usable_name(self._model or _model_of(agent)),
            agent=usable_name(agent.name),
        )
        ledger_of(context.usage).shares.append(share)
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


def _model_of(agent: Agent[Any]) -> str:
    """The name of the agent's model; of a model without one, its type."""
    model = agent.model
    if model is None:
        return get_default_model()
    if isinstance(model, str):
        return model
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__
