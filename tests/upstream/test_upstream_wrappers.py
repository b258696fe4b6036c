"""Wrapped for compaction, for encryption, or both: no metadata and no history is lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents import RunConfig, Runner
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession, SessionSettings
from openai import AsyncOpenAI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession, MetadataStore, verify_projection
from tests.support.helpers import user, users
from tests.upstream.test_upstream_runner import QUIET, agent, calls_weather, kinds, says

KEY = "a key for tests only"
SUMMARY = {"type": "compaction", "id": "cmp_1", "encrypted_content": "short"}
METADATA = {"title": "Trip to Rome", "tags": ["a", "b"]}


class FakeResponses:
    """Stands for the API, and keeps what it was asked to compact."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    async def compact(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        if self.error:
            raise self.error
        return SimpleNamespace(output=[SUMMARY], usage=None)


@pytest.fixture
def api() -> FakeResponses:
    return FakeResponses()


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    """With metadata, so that there is something to lose."""
    session = MetadataSession("s", engine=engine, create_tables=True)
    await session.set_metadata(METADATA)
    return session


def compacting(
    inner: Any, api: FakeResponses, *, after: int = 3
) -> OpenAIResponsesCompactionSession:
    """Compacts by itself as soon as the model has said ``after`` things."""
    client = cast(AsyncOpenAI, SimpleNamespace(responses=api))
    return OpenAIResponsesCompactionSession(
        "s",
        inner,
        client=client,
        compaction_mode="input",
        should_trigger_compaction=lambda seen: len(seen["compaction_candidate_items"]) >= after,
    )


def encrypted(inner: Any) -> EncryptedSession:
    return EncryptedSession("s", inner, KEY)


Wrap = Callable[[Any, FakeResponses], Any]

WRAPPINGS: dict[str, Wrap] = {
    "compaction": compacting,
    "encryption": lambda inner, api: encrypted(inner),
    "encryption of compaction": lambda inner, api: encrypted(compacting(inner, api)),
    "compaction of encryption": lambda inner, api: compacting(encrypted(inner), api),
}
COMPACTING = {name: wrap for name, wrap in WRAPPINGS.items() if "compaction" in name}

every_wrapping = pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
every_compaction = pytest.mark.parametrize("wrap", COMPACTING.values(), ids=COMPACTING)


async def assert_nothing_lost(session: MetadataSession) -> None:
    """The metadata is as it was, and the history is whole from version 1 on."""
    assert await session.get_metadata() == METADATA
    history = await session.history()
    assert [entry.version for entry in history] == list(range(1, len(history) + 1))
    assert history[0].type == "metadata_set"
    assert await session.get_metadata(as_of=1) == METADATA
    assert await verify_projection(MetadataStore(session.engine)) == []
    await session.set_metadata({"later": True})
    assert (await session.history())[-1].version == len(history) + 1


async def types(session: MetadataSession) -> list[str]:
    return [entry.type for entry in await session.history()]


async def stored(engine: AsyncEngine) -> str:
    async with engine.connect() as connection:
        return repr(
            (await connection.execute(text("SELECT message_data FROM agent_messages"))).all()
        )


@every_wrapping
async def test_the_protocol_through_a_wrapper(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = wrap(session, api)
    await wrapped.add_items(users("a", "b", "c"))
    assert await wrapped.get_items() == users("a", "b", "c")
    assert await wrapped.get_items(2) == users("b", "c")
    assert await wrapped.pop_item() == user("c")
    assert await wrapped.get_items() == users("a", "b")
    await assert_nothing_lost(session)


@every_wrapping
async def test_clearing_through_a_wrapper_clears_metadata_and_keeps_history(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = wrap(session, api)
    await wrapped.add_items(users("a"))
    await wrapped.clear_session()
    assert await wrapped.get_items() == []
    assert await session.get_metadata() == {}
    assert await session.get_metadata(as_of=2) == METADATA
    assert await types(session) == ["metadata_set", "items_added", "session_cleared"]


@every_wrapping
async def test_encrypted_items_are_stored_encrypted(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = wrap(session, api)
    await wrapped.add_items(users("plain words"))
    holds_cipher = wrap is not WRAPPINGS["compaction"]
    assert ("plain words" not in await stored(session.engine)) is holds_cipher


async def test_metadata_through_an_encrypted_session(session: MetadataSession) -> None:
    """It passes on what it does not know; metadata is not encrypted."""
    wrapped: Any = encrypted(session)
    await wrapped.set_metadata({"k": 1})
    assert await wrapped.get_metadata(["k", "title"]) == {"k": 1, "title": METADATA["title"]}
    assert [entry.version for entry in await wrapped.history()] == [1, 2]


# --- Automatic compaction -----------------------------------------------------------------------


@every_compaction
async def test_the_runner_compacts(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = wrap(session, api)
    clerk, model = agent(calls_weather("Rome"), says("Sunny."), says("Later."))
    await Runner.run(clerk, "Weather?", session=wrapped, run_config=QUIET)
    assert len(api.calls) == 1
    assert kinds(api.calls[0]["input"]) == [
        *("user", "function_call", "function_call_output", "message")
    ]
    assert await wrapped.get_items() == [SUMMARY]
    await Runner.run(clerk, "And then?", session=wrapped, run_config=QUIET)
    model.assert_complete()
    assert kinds(await wrapped.get_items()) == ["compaction", "user", "message"]
    assert "items_replaced" in await types(session)
    assert "session_cleared" not in await types(session)
    await assert_nothing_lost(session)


@every_compaction
async def test_only_what_the_model_saw_is_compacted(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = wrap(session, api)
    await wrapped.add_items(users("unseen", "unseen too"))
    blind = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=0))
    clerk, model = agent(calls_weather("Rome"), says("Sunny."))
    await Runner.run(clerk, "Weather?", session=wrapped, run_config=blind)
    assert model.first_call is not None
    assert model.first_call.input == users("Weather?")
    assert await wrapped.get_items() == [*users("unseen", "unseen too"), SUMMARY]
    await assert_nothing_lost(session)


@every_compaction
async def test_what_came_meanwhile_is_not_compacted_away(
    session: MetadataSession, api: FakeResponses, wrap: Wrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds an item while the model is writing the summary."""
    other = encrypted(session) if wrap is not WRAPPINGS["compaction"] else session
    compact = api.compact

    async def compact_slowly(**arguments: Any) -> Any:
        await other.add_items(users("meanwhile"))
        return await compact(**arguments)

    monkeypatch.setattr(api, "compact", compact_slowly)
    wrapped = wrap(session, api)
    clerk, _ = agent(calls_weather("Rome"), says("Sunny."))
    await Runner.run(clerk, "Weather?", session=wrapped, run_config=QUIET)
    assert len(api.calls) == 1
    items = await wrapped.get_items()
    assert kinds(items[:4]) == ["user", "function_call", "function_call_output", "message"]
    assert items[4:] == users("meanwhile")
    await assert_nothing_lost(session)


# --- Manual compaction --------------------------------------------------------------------------


async def filled(session: MetadataSession, api: FakeResponses, wrap: Wrap) -> Any:
    wrapped = wrap(session, api)
    await wrapped.add_items(users("a", "b", "c"))
    return wrapped


@pytest.mark.parametrize("name", ["compaction", "encryption of compaction"])
async def test_manual_compaction_replaces_all_items_in_one_transaction(
    session: MetadataSession, api: FakeResponses, name: str
) -> None:
    wrapped = await filled(session, api, COMPACTING[name])
    await wrapped.run_compaction()
    assert api.calls == []
    await wrapped.run_compaction({"force": True})
    assert api.calls[0]["input"] == users("a", "b", "c")
    assert await wrapped.get_items() == [SUMMARY]
    assert await types(session) == ["metadata_set", "items_added", "items_replaced"]
    await assert_nothing_lost(session)


async def test_manual_compaction_around_encryption_clears_the_session(
    session: MetadataSession, api: FakeResponses
) -> None:
    """Upstream does it by `clear_session()` there, which it cannot tell from the app's own call."""
    wrapped = await filled(session, api, COMPACTING["compaction of encryption"])
    await wrapped.run_compaction({"force": True})
    assert await wrapped.get_items() == [SUMMARY]
    assert await session.get_metadata() == {}
    assert await session.get_metadata(as_of=2) == METADATA
    assert await types(session) == [
        *("metadata_set", "items_added", "session_cleared", "items_added")
    ]


async def test_manual_compaction_around_encryption_keeps_the_metadata_if_told_so(
    session: MetadataSession, api: FakeResponses
) -> None:
    told = MetadataSession("s", engine=session.engine, clear_keeps_metadata=True)
    wrapped = await filled(told, api, COMPACTING["compaction of encryption"])
    await wrapped.run_compaction({"force": True})
    assert await wrapped.get_items() == [SUMMARY]
    await assert_nothing_lost(session)


@every_compaction
async def test_a_failing_compaction_changes_nothing(
    session: MetadataSession, api: FakeResponses, wrap: Wrap
) -> None:
    wrapped = await filled(session, api, wrap)
    api.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        await wrapped.run_compaction({"force": True})
    assert await wrapped.get_items() == users("a", "b", "c")
    assert await types(session) == ["metadata_set", "items_added"]
    await assert_nothing_lost(session)


async def test_compaction_touches_the_session(session: MetadataSession, api: FakeResponses) -> None:
    wrapped = await filled(session, api, COMPACTING["compaction"])
    async with session.engine.begin() as connection:
        await connection.execute(
            text("UPDATE agent_sessions SET updated_at = '2020-01-01 00:00:00'")
        )
    await wrapped.run_compaction({"force": True})
    async with session.engine.connect() as connection:
        touched = await connection.scalar(text("SELECT updated_at FROM agent_sessions"))
    assert not str(touched).startswith("2020")


# --- Items and subclasses -----------------------------------------------------------------------


async def test_items_out_of_date_are_removed_with_the_compaction(
    session: MetadataSession, api: FakeResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`EncryptedSession` lets items expire; they are dropped from the beginning of the history."""
    with monkeypatch.context() as past:
        past.setattr("time.time", lambda: 1_000_000_000.0)
        await encrypted(session).add_items(users("expired", "expired too"))
    wrapped = compacting(encrypted(session), api)
    assert await wrapped.get_items() == []
    assert len(await session.get_items()) == 2
    clerk, _ = agent(calls_weather("Rome"), says("Sunny."))
    await Runner.run(clerk, "Weather?", session=wrapped, run_config=QUIET)
    assert await wrapped.get_items() == [SUMMARY]
    assert len(await session.get_items()) == 1
    await assert_nothing_lost(session)


class Reversing(MetadataSession):
    """Transforms items where they come in and go out, not where they are serialized."""

    async def add_items(self, items: Any, **options: Any) -> Any:
        stored: list[Any] = [{"r": repr(item)[::-1]} for item in items]
        return await super().add_items(stored, **options)

    async def get_items(self, limit: int | None = None, **options: Any) -> list[Any]:
        found = await super().get_items(limit, **options)
        return [eval(item["r"][::-1]) for item in cast(Any, found)]


@pytest.mark.parametrize("automatic", [True, False])
async def test_compaction_does_not_bypass_what_a_subclass_does_to_items(
    engine: AsyncEngine, api: FakeResponses, automatic: bool
) -> None:
    session = Reversing("s", engine=engine, create_tables=True, clear_keeps_metadata=True)
    await session.set_metadata(METADATA)
    wrapped = compacting(session, api)
    if automatic:
        clerk, _ = agent(calls_weather("Rome"), says("Sunny."))
        await Runner.run(clerk, "Weather?", session=wrapped, run_config=QUIET)
    else:
        await wrapped.add_items(users("a", "b", "c"))
        await wrapped.run_compaction({"force": True})
    assert await wrapped.get_items() == [SUMMARY]
    assert "compaction" not in await stored(engine)
    await assert_nothing_lost(session)
