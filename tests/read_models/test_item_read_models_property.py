"""Whatever happens to the items of sessions, the structured tables are what a rebuild makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from eventmeta import MetadataStore, backfill_conversations, verify_projection
from tests.read_models.test_projection_property import running
from tests.support.backends import Backend

pytestmark = pytest.mark.each_dialect

EXAMPLES = settings(max_examples=max(10, settings().max_examples // 5), deadline=None)
SESSIONS = ("alpha", "Alpha ")
CALL_IDS = ("a", "b")

CALLS: tuple[Callable[[str], Any], ...] = (
    lambda key: {"type": "function_call", "call_id": key, "name": "f", "arguments": "{}"},
    lambda key: {"type": "custom_tool_call", "call_id": key, "name": "g", "input": "x"},
    lambda key: {"type": "mcp_approval_request", "id": key, "name": "h", "arguments": "{}"},
)
OUTPUTS: tuple[Callable[[str], Any], ...] = (
    lambda key: {"type": "function_call_output", "call_id": key, "output": f"of {key}"},
    lambda key: {"type": "mcp_approval_response", "approval_request_id": key, "approve": True},
)
OTHERS = (
    {"role": "user", "content": "hello"},
    {"type": "message", "role": "user", "content": "again"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "so \U0001f600"}]},
    {"type": "web_search_call", "id": "a", "status": "completed", "action": {"query": "q"}},
    {"type": "unheard_of", "role": "critic"},
    {"content": "no type at all"},
)
items = st.one_of(
    st.builds(lambda make, key: make(key), st.sampled_from(CALLS), st.sampled_from(CALL_IDS)),
    st.builds(lambda make, key: make(key), st.sampled_from(OUTPUTS), st.sampled_from(CALL_IDS)),
    st.sampled_from(OTHERS),
)
several = st.lists(items, min_size=1, max_size=4)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "add": several,
    "pop": st.none(),
    "clear": st.booleans(),
    "replace": several,
    "compact": several,
    "upstream adds": several,
    "upstream pops": st.none(),
    "upstream clears": st.none(),
}
TOGETHER = ("add", "pop", "add", "clear", "replace")
THEIRS = ("upstream adds", "upstream pops", "upstream clears")
OURS = ("add", "pop", "add", "pop", "replace", "compact", "clear")


@dataclass(frozen=True)
class Step:
    """Something done to a session."""

    session: str
    kind: str
    argument: Any

    async def take(self, store: MetadataStore) -> None:
        """Do it."""
        session = store.session(self.session)
        names = store.log.database.tables.names
        upstream = SQLAlchemySession(
            self.session,
            engine=store.engine,
            sessions_table=names.sessions_table,
            messages_table=names.messages_table,
        )
        match self.kind:
            case "add":
                await session.add_items(self.argument)
            case "pop":
                await session.pop_item()
            case "clear":
                await session.clear_session(keep_metadata=self.argument)
            case "replace":
                await session._atomic_replace_items(self.argument)
            case "compact":
                snapshot = await session._get_compaction_snapshot(3)
                assert snapshot
                await snapshot.replace_suffix(0, self.argument)
            case "upstream adds":
                await upstream.add_items(self.argument)
            case "upstream pops":
                await upstream.pop_item()
            case "upstream clears":
                await upstream.clear_session()


def steps_of(kinds: tuple[str, ...]) -> st.SearchStrategy[Step]:
    return st.one_of(
        *(st.builds(Step, st.sampled_from(SESSIONS), st.just(k), ARGUMENTS[k]) for k in kinds)
    )


async def empty(store: MetadataStore) -> None:
    """Leave no item, and nothing that came of one."""
    tables = store.log.database.tables
    async with store.engine.begin() as connection:
        for projection in tables.item_projections:
            await connection.execute(delete(projection.table))
        await connection.execute(delete(tables.messages))


async def check(store: MetadataStore) -> None:
    """The tables are what the fold says, and what is said here in plain Python."""
    assert await verify_projection(store) == []
    tables = store.log.database.tables
    assert tables.conversation
    assert tables.tool_calls
    message, said, call = tables.messages.c, tables.conversation.table.c, tables.tool_calls.table.c
    in_order = (message.created_at, message.id)
    async with store.engine.connect() as connection:
        stored = await connection.execute(
            select(message.session_id, message.id, message.message_data).order_by(*in_order)
        )
        rows = [(session, item_id, json.loads(text)) for session, item_id, text in stored]
        conversation = await connection.execute(
            select(said.id, said.turn, said.parent_raw_event_id).order_by(said.id)
        )
        calls = await connection.execute(
            select(call.id, call.turn, call.parent_raw_event_id, call.output_raw_event_id).order_by(
                call.id
            )
        )
        one, other = (expected_of(rows, session) for session in SESSIONS)
        assert [tuple(row) for row in conversation] == sorted(one[0] + other[0])
        assert [tuple(row) for row in calls] == sorted(one[1] + other[1])


def expected_of(rows: list[Any], session: str) -> tuple[list[Any], list[Any]]:
    """The rows of the conversation, and of the tool calls, without what is in them."""
    turn, parent = 0, None
    conversation: list[Any] = []
    calls: dict[int, list[Any]] = {}
    latest: dict[str, int] = {}
    for item_id, item in [(i, item) for s, i, item in rows if s == session]:
        kind = item.get("type", "")
        key = item.get("approval_request_id") or item.get("call_id") or item.get("id")
        called = latest.get(key)
        if kind.endswith(("_output", "_response")):
            if called is not None and calls[called][3] is None:
                calls[called][3] = item_id
            else:
                calls[item_id] = [item_id, turn, parent, None]
        elif kind.endswith(("_call", "_request")):
            calls[item_id] = [item_id, turn, parent, None]
            if kind != "web_search_call":
                latest[key] = item_id
        elif item.get("role") == "user":
            turn, parent = turn + 1, item_id
            conversation.append((item_id, turn, None))
        else:
            conversation.append((item_id, turn, parent))
    return conversation, [tuple(row) for row in calls.values()]


def test_after_each_change_the_tables_are_what_a_rebuild_makes(backend: Backend) -> None:
    with running(backend, structured_metadata=True) as (runner, empty_store):
        store = empty_store()

        @settings(EXAMPLES)
        @given(st.lists(steps_of(OURS), min_size=3, max_size=12))
        def holds(steps: list[Step]) -> None:
            async def run() -> None:
                await empty(store)
                for step in steps:
                    await step.take(store)
                    await check(store)

            runner.run(run())

        holds()


def test_many_changes_in_one_batch_are_followed(backend: Backend) -> None:
    with running(backend, structured_metadata=True) as (runner, empty_store):
        store = empty_store()

        @settings(EXAMPLES)
        @given(st.lists(steps_of(TOGETHER), min_size=2, max_size=12))
        def holds(steps: list[Step]) -> None:
            async def run() -> None:
                await empty(store)
                await asyncio.gather(*(step.take(store) for step in steps))
                await check(store)

            runner.run(run())

        holds()


def test_what_upstream_wrote_is_made_up_for_by_the_next_write(backend: Backend) -> None:
    """The session that we write to is right at once; a backfill mends the other, too."""
    with running(backend, structured_metadata=True) as (runner, empty_store):
        store = empty_store()

        @settings(EXAMPLES)
        @given(
            before=st.lists(steps_of(("add",)), max_size=4),
            theirs=st.lists(steps_of(THEIRS), max_size=4),
            ours=st.lists(several, min_size=2, max_size=2),
            backfilled=st.booleans(),
        )
        def holds(
            before: list[Step], theirs: list[Step], ours: list[Any], backfilled: bool
        ) -> None:
            async def run() -> None:
                await empty(store)
                for step in (*before, *theirs):
                    await step.take(store)
                if backfilled:
                    await backfill_conversations(store, batch_size=1)
                else:
                    for session, added in zip(SESSIONS, ours, strict=True):
                        await store.session(session).add_items(added)
                await check(store)

            runner.run(run())

        holds()
