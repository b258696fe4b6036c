"""The tables of conversations and tool calls: what is in them, and when."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from openai.types.responses import response_input_item_param, response_output_item
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, acting_as, verify_projection
from eventmeta.dialects.statement import Query, recordset
from projections.items import OTHER_ITEMS, TOOL_ITEMS, may_be_tool_item
from tests.support.backends import Backend
from tests.support.helpers import user, users

pytestmark = pytest.mark.each_dialect

SAID = "agent_conversation_messages"
CALLS = "agent_tool_calls"


def call(call_id: str, name: str = "look_up", **fields: Any) -> Any:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}", **fields}


def output(call_id: str, said: object = "found", **fields: Any) -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": said, **fields}


def assistant(said: str) -> Any:
    return {"type": "message", "role": "assistant", "content": said}


async def select(store: MetadataStore, columns: str, table: str) -> list[tuple[Any, ...]]:
    async with store.engine.connect() as connection:
        found = await connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY id"))
        return [tuple(row) for row in found]


@pytest.fixture
def talk(structured: MetadataStore) -> MetadataSession:
    return structured.session("talk")


# --- Which items there are ------------------------------------------------------------------------


def types_of(union: Any) -> Iterator[str]:
    """The ``type`` of every member of a union of the openai package."""
    origin = typing.get_origin(union)
    if origin is typing.Annotated:
        yield from types_of(typing.get_args(union)[0])
    elif typing.get_args(union) and origin is not typing.Literal:
        for member in typing.get_args(union):
            yield from types_of(member)
    elif union is not type(None):
        fields = getattr(union, "model_fields", None)
        yield from strings_of(
            fields["type"].annotation if fields else typing.get_type_hints(union)["type"]
        )


def strings_of(hint: Any) -> Iterator[str]:
    for argument in typing.get_args(hint):
        if isinstance(argument, str):
            yield argument
        else:
            yield from strings_of(argument)


@pytest.mark.parametrize(
    "union",
    [response_input_item_param.ResponseInputItemParam, response_output_item.ResponseOutputItem],
)
def test_every_item_of_the_sdk_is_classified(union: Any) -> None:
    found = set(types_of(union))
    assert len(found) > 25
    assert found - TOOL_ITEMS.keys() - OTHER_ITEMS == set()


@pytest.mark.parametrize(
    ("stored", "may_be"),
    [
        ('{"type":"function_call"}', True),
        (r'{"type":"\u0066unction_call"}', True),
        ('{"role":"user","content":"hello \\u00e9"}', False),
    ],
)
def test_no_tool_item_is_taken_for_something_else(stored: str, may_be: bool) -> None:
    assert may_be_tool_item(stored) is may_be


async def test_each_type_is_in_its_table(structured: MetadataStore, talk: MetadataSession) -> None:
    kinds = sorted({*TOOL_ITEMS, *OTHER_ITEMS, "not_yet_invented"})
    await talk.add_items([typing.cast(Any, {"type": kind, "id": kind}) for kind in kinds])
    said = [kind for (kind,) in await select(structured, "type", SAID)]
    calls = [kind for (kind,) in await select(structured, "type", CALLS)]
    assert said == [kind for kind in kinds if kind not in TOOL_ITEMS]
    assert calls == [kind for kind in kinds if kind in TOOL_ITEMS and kind not in MERGED]


MERGED = {"tool_search_output"}
"""Outputs without an id, which belong to the last call without one."""

TOOLS: list[tuple[list[Any], tuple[Any, ...]]] = [
    (
        [
            {
                "type": "function_call",
                "call_id": "1",
                "name": "f",
                "namespace": "ns",
                "arguments": "{}",
            }
        ],
        ("function_call", "1", "ns.f", "{}", None, "in_progress"),
    ),
    ([call("1", "transfer_to_x")], ("handoff", "1", "transfer_to_x", "{}", None, "in_progress")),
    (
        [
            {"type": "custom_tool_call", "call_id": "1", "name": "f", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "1", "output": "y"},
        ],
        ("custom_tool_call", "1", "f", "x", "y", "completed"),
    ),
    (
        [
            {"type": "local_shell_call", "id": "9", "call_id": "1", "action": 1},
            {"type": "local_shell_call_output", "id": "1", "output": "y"},
        ],
        ("local_shell_call", "1", "local_shell_call", "1", "y", "completed"),
    ),
    (
        [
            {"type": "shell_call", "call_id": "1", "action": "ls"},
            {"type": "shell_call_output", "call_id": "1", "output": "y", "status": "incomplete"},
        ],
        ("shell_call", "1", "shell_call", "ls", "y", "incomplete"),
    ),
    (
        [
            {"type": "mcp_approval_request", "id": "1", "server_label": "s", "name": "f"},
            {"type": "mcp_approval_response", "approval_request_id": "1", "approve": False},
        ],
        ("mcp_approval_request", "1", "s.f", None, "false", "completed"),
    ),
    (
        [{"type": "mcp_call", "id": "1", "server_label": "s", "name": "f", "output": "y"}],
        ("mcp_call", "1", "s.f", None, "y", "completed"),
    ),
    (
        [{"type": "file_search_call", "id": "1", "queries": ["q"], "status": "failed"}],
        ("file_search_call", "1", "file_search_call", '["q"]', None, "failed"),
    ),
    (
        [
            {"type": "tool_search_call", "arguments": "q", "call_id": None},
            {"type": "tool_search_output", "tools": "t", "call_id": None},
        ],
        ("tool_search_call", "", "tool_search", "q", "t", "completed"),
    ),
    (
        [output("1", "y")],
        ("function_call_output", "1", "function_call_output", None, "y", "completed"),
    ),
]


@pytest.mark.parametrize(("items", "expected"), TOOLS, ids=[row[1][0] for row in TOOLS])
async def test_tool_calls_are_taken_apart(
    structured: MetadataStore, talk: MetadataSession, items: list[Any], expected: tuple[Any, ...]
) -> None:
    await talk.add_items(items)
    columns = "type, call_id, tool_name, arguments, output, status"
    assert await select(structured, columns, CALLS) == [expected]


# --- Turns and links ------------------------------------------------------------------------------


async def test_a_run_adds_in_several_calls(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    """As the Runner does it: [user], [call, output], [assistant]."""
    await talk.add_items([user("which?")])
    with acting_as("runner", run_id="r", trace_id="t", span_id="s"):
        await talk.add_items([call("1"), output("1")])
        await talk.add_items([assistant("that one")])
    said = await select(structured, "role, turn, parent_raw_event_id, run_id", SAID)
    (question,) = [row[0] for row in await select(structured, "id", SAID)][:1]
    assert said == [("user", 1, None, None), ("assistant", 1, question, "r")]
    columns = "turn, parent_raw_event_id, run_id, trace_id, span_id, status, output"
    assert await select(structured, columns, CALLS) == [
        (1, question, "r", "t", "s", "completed", "found")
    ]


async def test_turns_go_on_through_pops_and_rewinds(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    await talk.add_items([assistant("before any turn"), *users("1", "2")])
    await talk.pop_item()
    await talk.add_items([assistant("of 1"), user("2")])
    await talk.add_items([assistant("of 2")])
    assert [turn for (turn,) in await select(structured, "turn", SAID)] == [0, 1, 1, 2, 2]


async def test_an_output_may_come_later_and_go_again(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    await talk.add_items([user("?"), call("1"), call("2")])
    await talk.add_items([output("1")])
    columns = "call_id, status, output"
    after = [("1", "completed", "found"), ("2", "in_progress", None)]
    assert await select(structured, columns, CALLS) == after
    await talk.pop_item()
    assert await select(structured, columns, CALLS) == [
        ("1", "in_progress", None),
        ("2", "in_progress", None),
    ]


async def test_of_several_outputs_the_first_counts(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    await talk.add_items([output("1", "early"), call("1"), output("1", "a")])
    await talk.add_items([output("1", "b"), call("1"), output("1", "c")])
    assert await select(structured, "type, output", CALLS) == [
        ("function_call_output", "early"),
        ("function_call", "a"),
        ("function_call_output", "b"),
        ("function_call", "c"),
    ]


async def test_calls_of_other_sessions_are_none_of_its(structured: MetadataStore) -> None:
    await structured.session("a").add_items([call("1")])
    await structured.session("b").add_items([output("1")])
    found = await select(structured, "session_id, type, status", CALLS)
    assert found == [
        ("a", "function_call", "in_progress"),
        ("b", "function_call_output", "completed"),
    ]


async def test_a_batch_may_hold_both(structured: MetadataStore) -> None:
    one, other = structured.session("a"), structured.session("b")
    await asyncio.gather(
        one.add_items([user("?"), call("1")]),
        other.add_items([user("?"), call("1")]),
        one.add_items([output("1", "of a")]),
        other.add_items([output("1", "of b")]),
        one.add_items([assistant("!")]),
    )
    assert sorted(await select(structured, "session_id, output, turn", CALLS)) == [
        ("a", "of a", 1),
        ("b", "of b", 1),
    ]


async def test_what_replaces_items_has_rows(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    await talk.add_items([user("1"), call("1"), output("1"), user("2")])
    compaction: Any = {"type": "compaction", "encrypted_content": "x"}
    assert await talk._atomic_replace_items([compaction, user("3")])
    assert await select(structured, "type, turn", SAID) == [("compaction", 0), ("message", 1)]
    assert await select(structured, "id", CALLS) == []


@pytest.mark.parametrize("keep", [True, False])
async def test_clearing_removes_the_rows(
    structured: MetadataStore, talk: MetadataSession, keep: bool
) -> None:
    await talk.add_items([user("1"), call("1")])
    await talk.clear_session(keep_metadata=keep)
    assert await select(structured, "id", SAID) == await select(structured, "id", CALLS) == []
    await talk.add_items([user("1")])
    assert await select(structured, "turn", SAID) == [(1,)]


async def test_within_a_transaction_of_the_apps(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    async with structured.engine.connect() as connection:
        await talk.add_items([user("1"), call("1")], connection=connection)
        await talk.add_items([output("1"), assistant("a")], connection=connection)
        await connection.commit()
    assert await select(structured, "turn, status", CALLS) == [(1, "completed")]
    assert await select(structured, "turn", SAID) == [(1,), (1,)]


# --- Any text -------------------------------------------------------------------------------------


class Verbatim(MetadataSession):
    """Stores texts as they are given."""

    async def _serialize_item(self, item: Any) -> str:
        return str(item)


LONG = "x" * 300
TEXTS: list[tuple[str, tuple[Any, ...]]] = [
    ("no JSON", ("unknown", None, None)),
    ("", ("unknown", None, None)),
    ("[1]", ("unknown", None, None)),
    ('"text"', ("unknown", None, None)),
    ("null", ("unknown", None, None)),
    ('{"type":', ("unknown", None, None)),
    ('{"type":5,"role":"critic","content":1}', ("unknown", "critic", "1")),
    ('{"type":null,"role":"user","content":"x"}', ("message", "user", '"x"')),
    ('{"type":"","role":["user"],"content":"x"}', ("unknown", None, '"x"')),
    (f'{{"type":"{LONG}","role":"{LONG}","content":"x"}}', ("unknown", None, '"x"')),
    (
        r'{"role":"user","content":"a\u0000\ud800\udc00\ud800b"}',
        ("message", "user", r'"a\\u0000\ud800\udc00\\ud800b"'),
    ),
    (r'{"role":"user","content":"a\\u0000"}', ("message", "user", r'"a\\u0000"')),
    (r'{"role":"user","content":"\\ud800\udc00"}', ("message", "user", r'"\\ud800\\udc00"')),
    (
        r'{"role":"user","content":"\ud800\ud83d\ude00"}',
        ("message", "user", r'"\\ud800\ud83d\ude00"'),
    ),
    (
        '{"role":"user","content":"%s 😀 \' ` : ? $1 %"}',
        ("message", "user", '"%s 😀 \' ` : ? $1 %"'),
    ),
    (
        '{"role":"assistant","content":null}',
        ("message", "assistant", '{"role":"assistant","content":null}'),
    ),
]


@pytest.mark.parametrize(("stored", "expected"), TEXTS, ids=[str(n) for n in range(len(TEXTS))])
async def test_no_text_fails_an_add(
    structured: MetadataStore, stored: str, expected: tuple[Any, ...]
) -> None:
    session = Verbatim("odd", engine=structured.engine, structured_metadata=True)
    await session.add_items([typing.cast(Any, stored)])
    assert await select(structured, "type, role, content", SAID) == [expected]


@pytest.mark.parametrize("depth", [200, 5_000])
async def test_depth_does_not_fail_an_add(structured: MetadataStore, depth: int) -> None:
    session = Verbatim("odd", engine=structured.engine, structured_metadata=True)
    await session.add_items(
        [typing.cast(Any, '{"role":"x","content":' + "[" * depth + "]" * depth + "}")]
    )
    ((kind,),) = await select(structured, "type", SAID)
    assert kind in ("message", "unknown")


async def test_texts_of_tool_calls_are_plain_where_they_can_be(structured: MetadataStore) -> None:
    session = Verbatim("odd", engine=structured.engine, structured_metadata=True)
    odd = [
        r'{"type":"function_call","call_id":"1","name":"f\u0000","arguments":"\u00e9\n\ud83d\ude00"}',
        r'{"type":"function_call_output","call_id":"1","output":"\udc00\u0000"}',
        f'{{"type":"function_call","call_id":"{LONG}","name":{{"a":1}},"arguments":true}}',
        f'{{"type":"function_call_output","call_id":"{LONG}","output":1.50}}',
    ]
    await session.add_items(typing.cast(Any, odd))
    found = await select(structured, "call_id, tool_name, arguments, output", CALLS)
    assert found[0] == ("1", r"f\u0000", "é\n😀", r"\udc00\u0000")
    assert found[1][0] is None
    assert found[1][2:] == ("true", None)
    assert found[2] == (None, "function_call_output", None, "1.50")


async def test_many_escapes_are_taken_in_one_go(structured: MetadataStore) -> None:
    """A search that looks back from each would take minutes, with the session locked."""
    session = Verbatim("odd", engine=structured.engine, structured_metadata=True)
    count = 20_000
    odd = r"\u00e9\u0000\ud83d\ude00" * count
    said = f'{{"type":"function_call_output","call_id":"1","output":"{odd}"}}'
    async with asyncio.timeout(60):
        await session.add_items([typing.cast(Any, said)])
    assert await select(structured, "output", CALLS) == [("é\\u0000😀" * count,)]


async def test_a_large_text_is_kept(structured: MetadataStore, talk: MetadataSession) -> None:
    large = "é" * 300_000
    await talk.add_items([call("1", arguments=large), output("1", large)])
    ((arguments, found),) = await select(structured, "arguments, output", CALLS)
    assert arguments == found == large


@pytest.mark.parametrize("value", [5, True, ["r"], LONG, "r"])
async def test_odd_contexts_are_no_obstacle(
    structured: MetadataStore, talk: MetadataSession, value: Any
) -> None:
    with acting_as("me", run_id=value):
        await talk.add_items([user("1")])
    ((run_id,),) = await select(structured, "run_id", SAID)
    assert run_id is None if value == LONG else isinstance(run_id, str)


# --- The tables themselves ------------------------------------------------------------------------


async def test_off_by_default(store: MetadataStore, session: MetadataSession) -> None:
    await session.add_items([user("1"), call("1")])
    async with store.engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert not {SAID, CALLS, "agent_usage"} & set(names)


async def test_rows_go_with_their_items(structured: MetadataStore, talk: MetadataSession) -> None:
    await talk.add_items([user("1"), call("1")])
    async with structured.engine.begin() as connection:
        await connection.execute(text("DELETE FROM agent_messages"))
    assert await select(structured, "id", SAID) == await select(structured, "id", CALLS) == []


async def test_rows_go_with_what_another_engine_removes(
    structured: MetadataStore, talk: MetadataSession, persistent_url: str
) -> None:
    """Upstream's own engine does not ask SQLite to heed foreign keys."""
    await talk.add_items([user("1"), call("1"), user("2")])
    engine = create_async_engine(persistent_url)
    upstream = SQLAlchemySession("talk", engine=engine)
    await upstream.pop_item()
    assert [turn.content for turn in await talk.get_turns()] == ["1"]
    await upstream.clear_session()
    await engine.dispose()
    assert await select(structured, "id", SAID) == await select(structured, "id", CALLS) == []


LINKED = {"id", "session_id", "raw_event_id", "trace_id", "span_id", "created_at"}
COUNTED = {"requests", "input_tokens", "output_tokens", "total_tokens"}
PROPOSED: dict[str, tuple[set[str], set[tuple[str, ...]]]] = {
    "agent_users": ({"user_id", "metadata", "created_at", "updated_at"}, set()),
    "agent_sessions": ({"session_id", "user_id", "created_at", "updated_at"}, {("user_id",)}),
    SAID: ({*LINKED, "role", "content", "parent_raw_event_id"}, set()),
    CALLS: ({*LINKED, "call_id", "tool_name", "arguments", "output", "status"}, set()),
    "agent_usage": (
        {
            *(LINKED - {"raw_event_id"} | COUNTED),
            *("response_id", "model", "input_tokens_details", "output_tokens_details"),
        },
        {("trace_id", "created_at"), ("response_id",)},
    ),
}
"""The columns and indexes of the proposals; of the tables of items, the latter are below."""


@pytest.mark.parametrize("table", PROPOSED)
async def test_tables_have_what_was_proposed(structured: MetadataStore, table: str) -> None:
    columns, indexes = PROPOSED[table]

    def look(sync: Any) -> None:
        found = inspect(sync)
        assert {each["name"] for each in found.get_columns(table)} >= columns
        assert {tuple(each["column_names"]) for each in found.get_indexes(table)} >= indexes

    async with structured.engine.connect() as connection:
        await connection.run_sync(look)


async def test_indexes_and_keys(structured: MetadataStore) -> None:
    def look(sync: Any) -> None:
        for table in (SAID, CALLS):
            indexed = {tuple(index["column_names"]) for index in inspect(sync).get_indexes(table)}
            assert indexed >= {
                ("session_id", "created_at"),
                ("trace_id", "created_at"),
                ("span_id", "created_at"),
                ("session_id", "turn"),
            }
            (key,) = inspect(sync).get_foreign_keys(table)
            assert (key["constrained_columns"], key["referred_table"]) == (
                ["raw_event_id"],
                "agent_messages",
            )
            assert key["options"]["ondelete"] == "CASCADE"

    async with structured.engine.connect() as connection:
        await connection.run_sync(look)


async def test_a_row_written_by_hand_is_found_out(
    structured: MetadataStore, talk: MetadataSession
) -> None:
    await talk.add_items([user("1"), call("1")])
    async with structured.engine.begin() as connection:
        await connection.execute(text(f"UPDATE {CALLS} SET status = 'lost'"))
        await connection.execute(text(f"DELETE FROM {SAID}"))
    found = [(each.projection, each.problem) for each in await verify_projection(structured)]
    assert found == [("conversation", "missing"), ("tool_calls", "different")] or found == [
        ("tool_calls", "different"),
        ("conversation", "missing"),
    ]
    await talk.clear_session()


async def test_tables_may_be_switched_on_late(engine: AsyncEngine) -> None:
    plain = MetadataStore(engine)
    await plain.create_tables()
    with acting_as("me", run_id="r"):
        await plain.session("talk").add_items([user("1"), call("1")])
    late = MetadataStore(engine, structured_metadata=True)
    await late.create_tables(turn_on_structured_metadata=True)
    await late.session("talk").add_items([output("1"), user("2")])
    assert await verify_projection(late) == []
    assert await select(late, "turn, run_id", SAID) == [(1, "r"), (2, None)]
    assert await select(late, "status, run_id", CALLS) == [("completed", "r")]


# --- Speed ----------------------------------------------------------------------------------------

KEPT = ("agent_messages", SAID, CALLS)


async def test_following_a_change_scans_no_table(
    structured: MetadataStore, backend: Backend
) -> None:
    """However many other sessions there are; also where the session itself is short."""
    for n in range(12):
        await asyncio.gather(
            *(
                structured.session(f"s{n}-{m}").add_items(
                    [user("?"), call("1"), output("1"), assistant("!")] * 3
                )
                for m in range(16)
            )
        )
    async with structured.engine.connect() as connection:
        if backend.is_server:
            tables = ", ".join(KEPT)
            await connection.exec_driver_sql(f"ANALYZE {ANALYZED[backend.name]}{tables}")
            await connection.commit()
        for query in queries_of(structured):
            explained = f"{EXPLAIN.get(backend.name, 'EXPLAIN QUERY PLAN')} {query.statement.sql}"
            rows = await connection.exec_driver_sql(explained, query.values)
            plan = [" ".join(map(str, row)) for row in rows]
            assert [line for line in plan if scans(line)] == [], "\n".join(plan)
        await connection.rollback()


ANALYZED = {"postgresql": "", "mariadb": "TABLE "}
EXPLAIN = {"postgresql": "EXPLAIN", "mariadb": "EXPLAIN"}


def queries_of(store: MetadataStore) -> Iterator[Query]:
    """What follows an addition and a removal."""
    statements = store.log.appender.statements
    structure = statements.structure
    assert structure
    added = [{"id": 5, "context": None, "turn_before": 1, "parent_before": 1}]
    given = recordset(added), recordset([{"session_id": "s1-1", "id": 4}])
    yield structure.states(sessions=recordset([{"session_id": "s1-1", "first": 5}]))
    yield structure.write_tool_calls(added=given[0], removed=given[1])
    yield structure.write_conversation(added=given[0])
    at_once = statements.plain.one(
        with_metadata=False, with_items=True, with_tools=True, for_users=False
    )
    if at_once:
        yield at_once(events="[]", items="[]")


def scans(line: str) -> bool:
    """Whether a line of a plan, of any database, reads a whole table of ours."""
    words = line.split()
    of_ours = any(name in words for name in KEPT)
    return of_ours and ("Seq Scan on" in line or "SCAN" in words or "ALL" in words)


async def test_mariadb_reads_items_of_at_most_31_levels(
    mariadb_backend: Backend, structured: MetadataStore
) -> None:
    """Others are stored as they are: docs/limits.md."""
    session = structured.session("s")
    nested: Any = user("nested")
    for level in range(2, 34):
        nested = {**user(str(level)), "extra": nested}
        if level >= 31:
            await session.add_items([nested])
    assert [turn.content for turn in await session.get_turns()] == ["31"]
    assert len(await session.get_items()) == 3
