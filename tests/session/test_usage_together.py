"""Items and the tokens of their run are recorded in one transaction: both or neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agents import RunContextWrapper
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from eventmeta import (
    MetadataSession,
    MetadataStore,
    UsageHooks,
    UsageTotals,
    VersionConflict,
    new_event_id,
)
from eventmeta.dialects.failure import Failure
from tests.session.test_usage import ANSWER, rows, run, structured, usage
from tests.support.helpers import count_transactions, users

pytestmark = pytest.mark.each_dialect

__all__ = ["structured"]

OPENED: dict[str, dict[str, Any]] = {
    "anybody's": {},
    "alice's": {"user_id": "alice"},
    "alice's, never claimed": {"user_id": "alice", "claim": False},
}
opened = pytest.mark.parametrize("options", OPENED.values(), ids=list(OPENED))


@pytest.fixture
def session(structured: MetadataStore) -> MetadataSession:
    return structured.session("alpha")


async def own(structured: MetadataStore, options: dict[str, Any]) -> MetadataSession:
    """A session that is there, and whose it is to be for ``options``."""
    if options:
        await structured.session("alpha", user_id="alice").add_items(users("Hi"))
    return structured.session("alpha", **options)


@opened
async def test_a_cancellation_does_not_come_between(
    structured: MetadataStore, options: dict[str, Any]
) -> None:
    session = await own(structured, options)
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    recorded, items = 0, len(await session.get_items())
    for turns in range(50):
        wrapper.usage.add(usage(1))
        task = asyncio.create_task(session.add_items(ANSWER, wrapper=wrapper))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if len(await session.get_items()) > items:
            items, recorded = items + 1, wrapper.usage.input_tokens
        assert len(await session.get_items()) == items
        assert (await session.get_usage()).input_tokens == recorded
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


@opened
async def test_both_take_one_transaction(
    structured: MetadataStore, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await own(structured, options)
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    begun = count_transactions(structured, monkeypatch)
    for _ in range(3):
        wrapper.usage.add(usage(1))
        await session.add_items(ANSWER, wrapper=wrapper)
    assert len(begun) == 3
    types = [entry.type for entry in await session.history()]
    assert types[-6:] == ["items_added", "usage_recorded"] * 3
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


async def test_both_are_refused_together(session: MetadataSession) -> None:
    wrapper = run()
    question = await session.add_items(users("Hi"), wrapper=wrapper)
    wrapper.usage.add(usage(1))
    refused = [
        session.add_items([*users("So?"), *ANSWER], wrapper=wrapper, expected_version=7)
        for _ in range(3)
    ]
    for outcome in await asyncio.gather(*refused, return_exceptions=True):
        assert isinstance(outcome, VersionConflict)
    assert await session.get_usage() == UsageTotals()
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)
    assert await rows(session.engine, "user_message_id") == question.data["item_ids"]


async def test_a_retry_counts_nothing_twice(session: MetadataSession) -> None:
    wrapper = run()
    event_ids = [new_event_id() for _ in range(3)]
    for n, event_id in enumerate(event_ids):
        wrapper.usage.add(usage(n + 1))
        for _ in range(2):
            await session.add_items([*users("Hi"), *ANSWER], wrapper=wrapper, event_id=event_id)
            wrapper.usage.add(usage(10))
    await asyncio.gather(
        *(
            session.add_items([*users("Hi"), *ANSWER], wrapper=wrapper, event_id=event_id)
            for event_id in event_ids * 3
        )
    )
    assert len(await session.get_items()) == 6
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


@opened
async def test_a_lost_answer_is_asked_for_again(
    structured: MetadataStore, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both: the attempt that is repeated finds them recorded."""
    session = await own(structured, options)
    wrapper = run()
    await session.add_items(users("Hi"), wrapper=wrapper)
    dialect, attempts = structured._log.database.dialect, 0
    write = dialect.write

    async def loses_the_first_answer(*arguments: Any, **named: Any) -> Any:
        nonlocal attempts
        attempts += 1
        outcome = await write(*arguments, **named)
        if attempts == 1:
            raise OSError("lost")
        return outcome

    diagnose = dialect.diagnose
    monkeypatch.setattr(dialect, "write", loses_the_first_answer)
    monkeypatch.setattr(
        dialect,
        "diagnose",
        lambda error: (
            (Failure.DISCONNECTED, None) if isinstance(error, OSError) else diagnose(error)
        ),
    )
    items = len(await session.get_items())
    wrapper.usage.add(usage(10))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert attempts == 2
    assert len(await session.get_items()) == items + 1
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)


async def test_a_question_and_its_answer_in_one_call(session: MetadataSession) -> None:
    """The tokens are those of the question, whose row gets its id in the same transaction."""
    wrapper = run()
    wrapper.usage.add(usage(10))
    first = await session.add_items([*users("a", "b"), *ANSWER], wrapper=wrapper)
    wrapper.usage.add(usage(5))
    second = await session.add_items([*users("c"), *ANSWER], wrapper=wrapper)
    messages = [first.data["item_ids"][1], second.data["item_ids"][0]]
    assert await rows(session.engine, "user_message_id", "input_tokens") == [
        (messages[0], 10),
        (messages[1], 5),
    ]
    turns = await session.get_turn_usage()
    assert isinstance(turns, list)
    assert [(turn["user_turn_number"], turn["input_tokens"]) for turn in turns] == [(2, 10), (3, 5)]


# --- In a transaction of the caller's -----------------------------------------------------------


@asynccontextmanager
async def as_connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield connection


@asynccontextmanager
async def as_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


within = pytest.mark.parametrize("transaction", [as_connection, as_session])


@within
@pytest.mark.parametrize("commits", [True, False])
async def test_the_callers_transaction_holds_both(
    session: MetadataSession, transaction: Any, commits: bool
) -> None:
    wrapper = run()
    async with transaction(session.engine) as own:
        for _ in range(3):
            await session.add_items(users("Hi"), wrapper=wrapper, connection=own)
            wrapper.usage.add(usage(1))
            await session.add_items(ANSWER, wrapper=wrapper, connection=own)
        await (own.commit() if commits else own.rollback())
    assert len(await session.get_items()) == 6 * commits
    assert (await session.get_usage()).input_tokens == 3 * commits
    wrapper.usage.add(usage(1))
    await session.add_items(ANSWER, wrapper=wrapper)
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)
    turns = await session.get_turn_usage()
    assert isinstance(turns, list)
    assert [turn["input_tokens"] for turn in turns] == ([1, 1, 2] if commits else [])


@within
async def test_a_run_from_elsewhere_is_known_within_it(
    session: MetadataSession, transaction: Any
) -> None:
    """Also by what is only in the transaction; nothing is read beside it, which might wait."""
    wrapper = run()
    async with transaction(session.engine) as own:
        await session.add_items(users("Hi"), wrapper=wrapper, connection=own)
        wrapper.usage.add(usage(10))
        await session.add_items(ANSWER, wrapper=wrapper, connection=own)
        resumed: RunContextWrapper[Any] = RunContextWrapper(context=None)
        resumed.usage.add(usage(10))
        resumed.usage.add(usage(3))
        again = MetadataSession("alpha", engine=session.engine, structured_metadata=True)
        await again.add_items(ANSWER, wrapper=resumed, connection=own)
        await own.commit()
    assert (await session.get_usage()).input_tokens == 13
    assert len({*await rows(session.engine, "run_id")}) == 1
    assert len({*await rows(session.engine, "user_message_id")}) == 1


async def test_the_end_of_a_block_waits_for_no_transaction_of_the_caller(
    session: MetadataSession, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = run()
    agent: Any = None
    async with session.engine.connect() as connection:
        async with asyncio.timeout(3), UsageHooks() as hooks:
            await hooks.on_llm_start(wrapper, agent, None, [])
            await session.add_items(users("Hi"), wrapper=wrapper, connection=connection)
            wrapper.usage.add(usage(1))
            await session.add_items(ANSWER, wrapper=wrapper, connection=connection)
        await connection.commit()
    assert caplog.text == ""
    assert await session.get_usage() == UsageTotals.of(wrapper.usage)
