"""The conversation turn by turn: whole turns, calls with their outputs, and how often tools run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from agents.extensions.memory import AdvancedSQLiteSession
from agents.memory import SessionSettings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import InvalidInput, MetadataSession, MetadataStore, StructuredMetadataOff
from eventmeta.session.turns import last_turns
from tests.support.helpers import user, users

pytestmark = pytest.mark.two_dialects


def call(call_id: str, kind: str = "function_call", **fields: Any) -> Any:
    return {"type": kind, "call_id": call_id, "name": "search", "arguments": "{}", **fields}


def output(call_id: str, kind: str = "function_call") -> Any:
    return {"type": f"{kind}_output", "call_id": call_id, "output": "found"}


def answer(content: str) -> Any:
    return {"type": "message", "role": "assistant", "content": content}


# --- get_items(turns=N) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "first"), [(-1, None), (0, None), (1, 6), (2, 5), (3, 1), (4, 0), (9, 0)]
)
async def test_the_last_turns_are_whole(
    session: MetadataSession, turns: int, first: int | None
) -> None:
    items = [
        answer("before any user message"),
        *(user("a"), call("1"), output("1"), answer("A")),
        user("b"),
        *(user("c"), answer("C")),
    ]
    await session.add_items(items)
    assert await session.get_items(turns=turns) == ([] if first is None else items[first:])


PAIRS = {
    "function": (call("1"), output("1")),
    "computer": (call("1", "computer_call"), output("1", "computer_call")),
    "a call that has an id of its own": (call("1", id="fc_1"), output("1")),
    "a type that is not known yet": (call("1", "quantum_call"), output("1", "quantum_call")),
    "local shell": (
        call("1", "local_shell_call", id="ls_1"),
        {"type": "local_shell_call_output", "id": "ls_1", "output": "found"},
    ),
    "tool search": (
        {"type": "tool_search_call", "id": "ts_1", "arguments": {}},
        {"type": "tool_search_output", "id": "tso_1", "tools": []},
    ),
    "approval": (
        {"type": "mcp_approval_request", "id": "mr_1", "name": "search", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "mr_1", "approve": True},
    ),
    "approved call": (
        {"type": "mcp_approval_request", "id": "mr_1", "name": "search", "arguments": "{}"},
        {"type": "mcp_call", "id": "mc_1", "approval_request_id": "mr_1", "name": "search"},
    ),
    "program": (
        {"type": "program", "id": "p_1", "call_id": "1", "code": ""},
        {"type": "program_output", "call_id": "1", "output": ""},
    ),
    "call of a program": (
        {"type": "program", "id": "p_1", "call_id": "1", "code": ""},
        call("2", caller={"type": "program", "caller_id": "1"}),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_an_output_comes_with_the_turn_of_its_call(pair: tuple[Any, Any]) -> None:
    called, completed = pair
    items = [user("a"), called, user("b"), user("c"), completed]
    assert last_turns(items, 1, complete=True) == [user("a"), called, user("c"), completed]
    assert last_turns(items[3:], 1, complete=False) is None, "its call is farther back"
    assert last_turns(items[:3], 1, complete=True) == [user("b")], "it is open"


def test_a_call_comes_with_the_turn_of_its_output() -> None:
    """Even where only another call of its turn is wanted."""
    first = [user("a"), call("1"), call("2")]
    items = [*first, user("b"), output("1"), user("c"), user("d"), output("2")]
    assert last_turns(items, 1, complete=True) == [*items[:5], *items[6:]]


def test_an_id_that_is_used_again_means_the_latest_call() -> None:
    items = [user("a"), call("1"), output("1"), user("b"), call("1"), output("1")]
    assert last_turns(items, 1, complete=True) == items[3:]
    assert last_turns(items[3:], 1, complete=False) == items[3:]


def test_an_output_without_any_call_is_kept() -> None:
    items = [user("a"), user("b"), output("lost")]
    assert last_turns(items, 1, complete=True) == items[1:]


ODD_ITEMS: list[Any] = [
    *(None, 3, "user", [], {}, {"role": ["user"]}, {"type": ["function_call"]}),
    *({"type": "function_call", "call_id": []}, {"type": "function_call_output", "call_id": {}}),
    *({"type": "program", "caller": "me"}, {"role": "user", "type": 7}),
]


@pytest.mark.parametrize("item", ODD_ITEMS, ids=repr)
def test_odd_items_are_items_too(item: Any) -> None:
    assert last_turns([user("a"), item], 9, complete=True) == [user("a"), item]


CALL_IDS = st.sampled_from("123")
ITEMS: Any = st.one_of(
    st.just(user("u")),
    st.just(user("u")),
    st.just(answer("a")),
    st.builds(call, CALL_IDS),
    st.builds(output, CALL_IDS),
)


def numbered(items: list[Any]) -> list[Any]:
    return [{**item, "n": n} for n, item in enumerate(items)]


HISTORIES = st.lists(ITEMS, max_size=24).map(numbered)


def turns_of(items: list[Any]) -> list[list[Any]]:
    turns: list[list[Any]] = [[]]
    for item in items:
        if item.get("role") == "user":
            turns.append([])
        turns[-1].append(item)
    return turns if turns[0] else turns[1:]


def pairs_of(items: list[Any]) -> list[tuple[int, int]]:
    """The number of each output and that of its call."""
    pairs = []
    for n, item in enumerate(items):
        if item.get("type") == "function_call_output":
            calls = [k for k in range(n) if items[k] == call(item["call_id"], n=k)]
            pairs += [(n, k) for k in calls[-1:]]
    return pairs


def expected_turns(items: list[Any], count: int) -> list[Any]:
    """Turns are added one by one, until no pair is split."""
    turns = turns_of(items)
    turn_of = {item["n"]: n for n, turn in enumerate(turns) for item in turn}
    kept = set(range(len(turns))[-count:]) if count > 0 else set[int]()
    while True:
        ends = [{turn_of[n] for n in pair} for pair in pairs_of(items)]
        split = [turns - kept for turns in ends if turns & kept and turns - kept]
        if not split:
            return [item for turn in sorted(kept) for item in turns[turn]]
        kept |= split[0]


@given(HISTORIES, st.integers(0, 6))
def test_turns_are_whole_and_calls_keep_their_outputs(items: list[Any], count: int) -> None:
    expected = expected_turns(items, count)
    assert last_turns(items, count, complete=True) == expected
    for start in range(len(items) + 1):
        assert last_turns(items[start:], count, complete=False) in (None, expected)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES.map(lambda items: numbered([user("long ago"), *items * 4])), st.integers(0, 12))
async def test_the_database_gives_the_same_turns(
    store: MetadataStore, items: list[Any], count: int
) -> None:
    session = store.session("property")
    await session.clear_session()
    await session.add_items(items)
    assert await session.get_items(turns=count) == expected_turns(items, count)


async def test_rows_that_hold_no_item_are_skipped(
    session: MetadataSession, engine: AsyncEngine
) -> None:
    await session.add_items(users("a", "b"))
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO agent_messages (session_id, message_data) VALUES ('alpha', '{oops')")
        )
    await session.add_items(users("c"))
    assert await session.get_items(turns=2) == users("b", "c")


async def test_the_settings_limit_does_not_shorten_turns(session: MetadataSession) -> None:
    await session.add_items(users("a", "b"))
    session.session_settings = SessionSettings(limit=1)
    assert await session.get_items(turns=2) == users("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 1, "turns": 1}, "limit 1 and turns 1 are both given: give one of them"),
        ({"turns": "2"}, "turns '2' is not usable: give a whole number"),
        ({"turns": True}, "turns True is not usable"),
    ],
    ids=["both", "text", "bool"],
)
async def test_turns_that_cannot_be_counted(
    session: MetadataSession, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await session.get_items(**arguments)


# --- Turn by turn -------------------------------------------------------------------------------


@pytest.fixture
async def structured(engine: AsyncEngine) -> MetadataSession:
    session = MetadataSession("alpha", engine=engine, create_tables=True, structured_metadata=True)
    await session.get_items()
    return session


@pytest.fixture
def advanced() -> Iterator[AdvancedSQLiteSession]:
    """Upstream's session that knows turns: of SQLite only."""
    session = AdvancedSQLiteSession(session_id="alpha", create_tables=True)
    yield session
    session.close()


BATCHES: list[list[Any]] = [
    [answer("before any user message"), call("0")],
    [user("weather?")],
    [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        call("1", name="weather"),
        call("2", name="weather", namespace="geo"),
        call("3", name="transfer_to_booker"),
    ],
    [output("1"), output("2")],
    [output("3"), answer("Sunny."), {"role": "assistant", "content": "Very."}],
    [user([{"type": "input_text", "text": "und in München?"}]), user("now!")],
    [
        call("4", "custom_tool_call", name="grep"),
        *(output("4", "custom_tool_call"), output("0")),
        {"type": "computer_call", "id": "cc", "call_id": "5", "action": {}, "status": "completed"},
        {"type": "computer_call_output", "call_id": "5", "output": {}},
        {"type": "shell_call", "call_id": "6", "action": {}},
        {"type": "apply_patch_call", "call_id": "7", "operation": {}},
        {"type": "file_search_call", "id": "fs", "queries": [], "status": "completed"},
        {"type": "web_search_call", "id": "ws", "action": {}, "status": "completed"},
        {"type": "code_interpreter_call", "id": "ci", "code": "1", "status": "completed"},
        {"type": "mcp_list_tools", "id": "ml", "server_label": "s", "tools": []},
        {"type": "mcp_approval_request", "id": "m", "server_label": "s", "name": "read"},
        {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True},
        {"type": "mcp_call", "id": "mc", "server_label": "s", "name": "read", "arguments": "{}"},
        {"type": "tool_search_call", "id": "ts", "arguments": {}},
        {"type": "tool_search_output", "id": "to", "tools": []},
        {"type": "compaction", "id": "cmp", "encrypted_content": "x"},
        {"type": "message", "role": "system", "content": "be brief"},
    ],
    [user("and again"), {"type": "tool_search_output", "id": "tp", "tools": []}],
]


async def same_turns(ours: MetadataSession, theirs: AdvancedSQLiteSession) -> None:
    by_turns = await ours.get_conversation_by_turns()
    plain = {
        turn: [{name: entry[name] for name in ("type", "tool_name")} for entry in entries]
        for turn, entries in by_turns.items()
    }
    assert plain == await theirs.get_conversation_by_turns()
    usage = await theirs.get_tool_usage()
    assert await ours.get_tool_usage() == sorted(usage, key=lambda used: (used[2], used[0]))
    assert [(turn.turn, turn.content) for turn in await ours.get_turns()] == [
        (turn["turn"], turn["full_content"]) for turn in await theirs.get_conversation_turns()
    ]


async def test_turns_are_those_of_upstream(
    structured: MetadataSession, advanced: AdvancedSQLiteSession
) -> None:
    for batch in BATCHES:
        for session in (structured, advanced):
            await session.add_items(batch)
        await same_turns(structured, advanced)
    assert len(await structured.get_turns()) == 4
    while await structured.pop_item() is not None:
        await advanced.pop_item()
        await same_turns(structured, advanced)


STEPS = st.lists(
    st.one_of(st.lists(ITEMS, min_size=1, max_size=6), st.just("pop")), min_size=1, max_size=8
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
async def test_turns_stay_those_of_upstream(structured: MetadataSession, steps: list[Any]) -> None:
    await structured.clear_session()
    advanced = AdvancedSQLiteSession(session_id="alpha", create_tables=True)
    try:
        for step in steps:
            for session in (structured, advanced):
                await (session.pop_item() if step == "pop" else session.add_items(step))
        await same_turns(structured, advanced)
    finally:
        advanced.close()


async def test_what_upstream_calls_otherwise(structured: MetadataSession) -> None:
    """It counts no local shell and no images, and knows neither handoffs nor system messages."""
    items: list[Any] = [
        user("draw"),
        {"role": "system", "content": "upstream: other"},
        {"type": "local_shell_call", "id": "l", "call_id": "1", "action": {}},
        {"type": "image_generation_call", "id": "i", "result": "", "status": "completed"},
        {"type": "quantum_call", "id": "q", "name": "upstream shows a name"},
        {"surprise": "no type"},
    ]
    await structured.add_items(items)
    (entries,) = (await structured.get_conversation_by_turns()).values()
    assert [(entry["type"], entry["tool_name"]) for entry in entries] == [
        ("user", None),
        ("message", None),
        ("local_shell_call", "local_shell_call"),
        ("image_generation_call", "image_generation_call"),
        ("quantum_call", None),
        ("other", None),
    ]
    assert await structured.get_tool_usage() == [
        ("image_generation_call", 1, 1),
        ("local_shell_call", 1, 1),
    ]


async def test_entries_say_more_than_upstream(structured: MetadataSession) -> None:
    added = await structured.add_items([user("a"), call("1", name="search"), call("2"), user("b")])
    late = await structured.add_items([output("1")])
    first, second = (await structured.get_conversation_by_turns()).values()
    ids = [*added.data["item_ids"], *late.data["item_ids"]]
    assert [entry["raw_event_id"] for entry in [*first, *second]] == ids
    assert [(entry["call_id"], entry["status"]) for entry in first] == [
        (None, None),
        ("1", "completed"),
        ("2", "in_progress"),
    ]
    assert second[1]["type"] == "function_call_output"
    assert second[1]["call_id"] == "1"


async def test_a_turn_says_what_a_list_needs(structured: MetadataSession) -> None:
    for batch in BATCHES:
        await structured.add_items(batch)
    turns = await structured.get_turns()
    ids = {
        (await structured.get_conversation_by_turns())[n][0]["raw_event_id"] for n in range(1, 5)
    }
    assert {turn.user_message_id for turn in turns} == ids
    assert [turn.turn for turn in turns] == [1, 2, 3, 4]
    assert [turn.messages for turn in turns] == [3, 1, 2, 1]
    assert [turn.tool_calls for turn in turns] == [3, 0, 10, 0]
    assert turns[1].content == [{"type": "input_text", "text": "und in München?"}]
    assert {turn.run_ids for turn in turns} == {()}
    assert abs(datetime.now(UTC).replace(tzinfo=None) - turns[0].created_at) < timedelta(days=1)


async def test_turns_are_counted_in_one_way(structured: MetadataSession) -> None:
    kinds: list[Any] = ["message", None, "", "unheard_of", 7, ["message"], "mcp_call", "reasoning"]
    for kind in kinds:
        items: list[Any] = [{**user(repr(kind)), "type": kind}, answer("so")]
        await structured.add_items(items)
    turns = await structured.get_turns()
    assert [turn.content for turn in turns] == [repr(kind) for kind in kinds if kind != "mcp_call"]
    for count, turn in enumerate(reversed(turns), start=1):
        (first, *_) = cast("list[Any]", await structured.get_items(turns=count))
        assert first["content"] == turn.content


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 2, "after": 2}, [3, 4]),
        ({"limit": 9, "after": 3}, [4]),
        ({"after": 4}, []),
        ({"limit": 0}, []),
    ],
    ids=repr,
)
async def test_turns_come_in_pages(
    structured: MetadataSession, page: dict[str, int], expected: list[int]
) -> None:
    await structured.add_items([answer("no turn"), *users("a", "b", "c", "d"), call("1")])
    assert [turn.turn for turn in await structured.get_turns(**page)] == expected


async def test_turns_of_sessions_do_not_mix(structured: MetadataSession) -> None:
    other = MetadataSession("beta", engine=structured.engine, structured_metadata=True)
    await structured.add_items([user("mine"), call("1"), output("1")])
    await other.add_items([user("theirs"), call("1")])
    assert [(turn.content, turn.tool_calls) for turn in await other.get_turns()] == [("theirs", 1)]
    assert len((await other.get_conversation_by_turns())[1]) == 2
    assert await other.get_tool_usage() == [("search", 1, 1)]


@pytest.mark.parametrize("argument", ["limit", "after"])
@pytest.mark.parametrize("value", [-1, "1", True])
async def test_a_page_of_turns_that_cannot_be(
    structured: MetadataSession, argument: str, value: Any
) -> None:
    with pytest.raises(InvalidInput, match=argument):
        await structured.get_turns(**{argument: value})


@pytest.mark.parametrize("call", ["get_turns", "get_conversation_by_turns", "get_tool_usage"])
async def test_turns_take_the_structured_tables(session: MetadataSession, call: str) -> None:
    with pytest.raises(StructuredMetadataOff, match=rf"{call}\(\).*structured_metadata=True"):
        await getattr(session, call)()
