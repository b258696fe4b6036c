"""Time in proportion to the input: by the work that the database does, or that Python does."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast

import pytest

from eventmeta import MetadataSession, MetadataStore, backfill_conversations
from eventmeta.database import event_reading as log_reading
from eventmeta.dialects.mysql import driver as mysql_running
from eventmeta.dialects.statement import Query, recordset
from eventmeta.read_models import item_changes as structure
from eventmeta.session.turns import last_turns
from tests.dialects.test_log_storage import work_of
from tests.projector.test_projection_plans import explain
from tests.support.acting import select
from tests.support.helpers import user, users

pytestmark = pytest.mark.each_dialect

Read = Callable[[MetadataSession], Awaitable[Any]]

CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a":"\x00"}'}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "\udc80\x00\ud83d\ude00"}


# --- The work of the database ---------------------------------------------------------------------


async def test_a_call_is_found_by_its_id_however_many_the_session_has(
    structured: MetadataStore,
) -> None:
    """On MariaDB also before it has counted what there is in its tables."""
    session = structured.session("talk")
    calls: list[Any] = [{**CALL, "call_id": f"c{number}"} for number in range(300)]
    await session.add_items(calls)
    await counted(structured)
    statements = structured.log.appender.statements.structure
    assert statements
    added = [{"id": 5, "context": None, "turn_before": 1, "parent_before": 1}]
    removed = [{"session_id": "talk", "id": 4}]
    query = statements.write_tool_calls(
        added=recordset(added), removed=recordset(removed), spelled="[]"
    )
    plan = await explain(structured.engine, query)
    for index in ("session_call", "session_output"):
        name = f"idx_agent_tool_calls_{index}"
        used = f"'{name}', '[0-9]" if structured.engine.dialect.name == "mysql" else name
        assert re.search(used, plan), plan
    assert not re.search("'given_spelled'.*join buffer", plan), "each text for each item"


async def counted(store: MetadataStore) -> None:
    """Have PostgreSQL count what there is in its tables, as it does by itself after a while."""
    if store.engine.dialect.name == "postgresql":
        async with store.engine.begin() as connection:
            await connection.exec_driver_sql("ANALYZE")


async def test_what_is_popped_is_followed_alone(
    structured: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an output, which leaves its call behind: the rest of the session is not looked at."""
    rebuilt: list[Any] = []
    rebuild = structure.rebuild

    def noted(*arguments: Any) -> Any:
        rebuilt.append(arguments)
        return rebuild(*arguments)

    monkeypatch.setattr(structure, "rebuild", noted)
    session = structured.session("talk")
    await session.add_items(cast(Any, [user("?"), CALL, OUTPUT] * 3))
    for _ in range(3):
        await session.pop_item()
    await asyncio.gather(*(session.pop_item() for _ in range(2)))
    await asyncio.gather(session.pop_item(), session.add_items(cast(Any, [CALL, OUTPUT])))
    await asyncio.gather(session.pop_item(), session.add_items(cast(Any, [OUTPUT])))
    assert rebuilt == []


READS: dict[str, Read] = {
    "get_turns": lambda session: session.get_turns(),
    "a page of turns": lambda session: session.get_turns(limit=5, after=3),
    "get_conversation_by_turns": lambda session: session.get_conversation_by_turns(),
    "get_tool_usage": lambda session: session.get_tool_usage(),
    "get_items": lambda session: session.get_items(),
    "get_items(turns=…)": lambda session: session.get_items(turns=3),
}


@pytest.mark.parametrize("read", READS)
async def test_reading_a_conversation_takes_work_in_proportion_to_its_length(
    structured: MetadataStore, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """Some databases go through all of one side for each row of the other."""
    sent = watched(structured, monkeypatch)
    work: list[int] = []
    for length in (50, 400):
        session = structured.session(f"of-{length}")
        turn = [user("?"), {**CALL, "arguments": ""}, {**OUTPUT, "output": ""}]
        await session.add_items(turn * length)
        await counted(structured)
        await READS[read](session)
        query = sent[-1]
        work.append(await work_of(structured.engine, query.statement.sql, query.values))
    assert work[1] < 12 * max(work[0], 20), work


def watched(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """The queries that are read outside of transactions, in their order."""
    sent: list[Query] = []
    read = store.log.database.dialect.read

    async def watched(queries: Sequence[Query]) -> Any:
        sent.extend(queries)
        return await read(queries)

    monkeypatch.setattr(store.log.database.dialect, "read", watched)
    return sent


async def test_a_page_of_a_stream_takes_no_work_for_those_before_it(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever one goes on: so the whole takes work in proportion to its length."""
    monkeypatch.setattr(log_reading, "PAGE", 20)
    for n in range(4):
        sessions = [store.session(f"s{number % 5}") for number in range(250)]
        await asyncio.gather(*(session.set_metadata({"n": n}) for session in sessions))
    await counted(store)
    sent = watched(store, monkeypatch)
    seen = [event async for event in store.events(stream="s3")]
    assert [event.version for event in seen] == list(range(1, 201))
    assert len(sent) == 11
    if store.engine.dialect.name == "postgresql":  # which would rather sort as few as ours
        assert re.search(r"Index Cond: .*\(version > ", await explain(store.engine, sent[-2]))
    else:
        work = [await work_of(store.engine, q.statement.sql, q.values) for q in sent[:-1:3]]
        assert max(work) < 2 * min(work), work
    resumed = [event async for event in store.events(int(seen[149].position), stream="s3")]
    assert resumed == seen[150:]
    of_others = [event async for event in store.events(int(seen[149].position) + 1, stream="s3")]
    assert of_others == seen[150:]


# --- Texts that a database cannot read ------------------------------------------------------------

ODD = [user("a\x00b"), CALL, OUTPUT, {"role": "assistant", "content": "\ud83d \\ \\u0000"}]


async def test_mariadb_rewrites_no_text(
    mariadb_backend: Any, structured: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To replace what is found in a text, it takes a time that grows with the square of that."""
    sent: list[str] = []
    execute = mysql_running._execute

    async def noted(connection: Any, facts: Any, query: Query) -> Any:
        sent.append(query.statement.sql.lower())
        return await execute(connection, facts, query)

    monkeypatch.setattr(mysql_running, "_execute", noted)
    talk = structured.session("talk")
    for item in ODD:
        await talk.add_items([cast(Any, item)])
    await talk.pop_item()
    await talk.pop_item()
    await backfill_conversations(structured)
    assert sum("regexp" in sql for sql in sent) >= 4
    assert [sql for sql in sent if "replace(" in sql] == []


async def test_items_that_are_linked_are_read_as_they_were_when_they_came(
    structured: MetadataStore,
) -> None:
    """A call whose output comes later, or goes, is read once more, from where it is stored."""
    talk = structured.session("talk")
    for item in ODD:
        await talk.add_items([cast(Any, item)])
    spelled = ('{"a":"\\u0000"}', "\\udc80\\u0000\N{GRINNING FACE}")
    rows = "arguments, output"
    assert await of_calls(structured, rows) == [spelled]
    await talk.pop_item()
    await talk.pop_item()
    assert await of_calls(structured, rows) == [(spelled[0], None)]
    await talk.add_items([cast(Any, OUTPUT)])
    assert await of_calls(structured, rows) == [spelled]
    assert (await talk.get_turns())[0].content == "a\\u0000b"


async def of_calls(store: MetadataStore, columns: str) -> list[Any]:
    return await select(store, f"SELECT {columns} FROM agent_tool_calls ORDER BY id")


async def test_many_such_items_are_told_apart(structured: MetadataStore) -> None:
    """Each gets its own text, in one call, in several sessions, and when it is rebuilt."""
    items = [user(f"\x00{number}") for number in range(300)]
    await structured.session("a").add_items(items)
    await structured.session("b").add_items([*users("plain"), *reversed(items)])
    await backfill_conversations(structured)
    for name, expected in {"a": items, "b": [user("plain"), *reversed(items)]}.items():
        turns = await structured.session(name).get_turns()
        said = [turn.content for turn in turns]
        assert said == [item["content"].replace("\x00", "\\u0000") for item in expected]


# --- The work of Python ---------------------------------------------------------------------------


def lines_run(call: Callable[[], Any]) -> int:
    """How many lines of Python were run by ``call``."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_turns_that_lead_from_one_to_the_other_are_followed_once() -> None:
    """Each has the output of the call in the one before."""

    def chain(length: int) -> list[Any]:
        return [
            part
            for turn in range(length)
            for part in (
                user(str(turn)),
                {"type": "function_call_output", "call_id": f"c{turn - 1}", "output": ""},
                {"type": "function_call", "call_id": f"c{turn}", "name": "f", "arguments": ""},
            )
        ]

    short, long = chain(50), chain(400)
    assert last_turns(long, 1, complete=True) == long
    work = [lines_run(partial(last_turns, each, 1, complete=True)) for each in (short, long)]
    assert work[1] < 12 * work[0], work
