"""The examples of the proposals that this project came from run with another import, no more."""

from __future__ import annotations

from pathlib import Path

from agents.memory import SQLiteSession as UpstreamSession

from eventmeta import MetadataStore, SQLiteSession, backfill_conversations
from tests.project.test_examples import output_of
from tests.support.helpers import users

METADATA = """
await session.set_metadata({"owner_id": "user_123", "title": "My Chat", "tags": ["work"]})
print(await session.get_metadata(keys=["owner_id", "title"]))
print(await session.get_metadata())
await session.delete_metadata(keys=["tags"])  # Delete specific keys
await session.delete_metadata()  # Delete all
print(await session.get_metadata(keys=["owner_id"]))
await session.set_metadata({"owner_id": "user_123"})
session_ids = await session.find_sessions_by_metadata("owner_id", "user_123")
print(session_ids)
"""

USERS = """
session = SQLiteSession("session-1", db_path="./data.db", user_id="alice")
await session.add_items([{"role": "user", "content": "Hi"}])
session_ids = await session.get_sessions_for_user("alice")
print(session_ids, session.user_id)
"""

STRUCTURED = """
import sqlite3
session = SQLiteSession("session-2", db_path="./data.db", structured_metadata=True)
await session.add_items([{"role": "user", "content": "Hi"}])
database = sqlite3.connect("data.db")
print(database.execute("SELECT role, content FROM agent_conversation_messages").fetchall())
database.close()
"""


def run(tmp_path: Path, example: str) -> list[str]:
    lines = "\n".join(f"    {line}" for line in example.splitlines())
    (tmp_path / "example.py").write_text(
        "import asyncio\nfrom eventmeta import SQLiteSession\n"
        "async def main():\n"
        "    session = SQLiteSession('session-1', db_path='./data.db')\n"
        f"{lines}\n    await session.engine.dispose()\nasyncio.run(main())\n",
        encoding="utf-8",
    )
    return output_of("example.py", folder=tmp_path).splitlines()


def test_metadata(tmp_path: Path) -> None:
    assert run(tmp_path, METADATA) == [
        "{'owner_id': 'user_123', 'title': 'My Chat'}",
        "{'owner_id': 'user_123', 'tags': ['work'], 'title': 'My Chat'}",
        "{'owner_id': None}",
        "['session-1']",
    ]


def test_users(tmp_path: Path) -> None:
    assert run(tmp_path, USERS) == ["['session-1'] alice"]


def test_structured_metadata(tmp_path: Path) -> None:
    assert run(tmp_path, STRUCTURED) == ["[('user', '\"Hi\"')]"]


async def test_a_file_of_upstreams_is_opened_in_place(tmp_path: Path) -> None:
    theirs = UpstreamSession("s", tmp_path / "data.db")
    await theirs.add_items(users("a", "b"))
    theirs.close()
    ours = SQLiteSession("s", tmp_path / "data.db", user_id="alice", structured_metadata=True)
    assert await ours.get_items() == users("a", "b")
    await ours.add_items(users("c"))
    async with MetadataStore(ours.engine, structured_metadata=True) as store:
        assert (await backfill_conversations(store)).sessions == 1
    assert [turn.content for turn in await ours.get_turns()] == ["a", "b", "c"]
    assert await ours.get_sessions_for_user("alice") == ["s"]
    await ours.engine.dispose()


async def test_sessions_of_a_user(tmp_path: Path) -> None:
    first = SQLiteSession("s", tmp_path / "data.db", user_id="alice")
    await first.add_items(users("a"))
    made = await SQLiteSession.create_session("alice", engine=first.engine)
    found = await SQLiteSession.get_session("alice", "s", engine=first.engine)
    assert found is not None
    assert await found.get_items() == users("a")
    listed = await SQLiteSession.get_sessions("alice", engine=first.engine)
    assert {each.session_id for each in listed} == {"s", made.session_id}
    await first.engine.dispose()


async def test_in_memory_each_is_alone() -> None:
    one, other = SQLiteSession("s"), SQLiteSession("s")
    await one.add_items(users("a"))
    assert await other.get_items() == []
    assert await one.get_items() == users("a")
    await one.engine.dispose()
    await other.engine.dispose()
