"""The apps, rights, queries and pictures of the README and the docs, tried as a reader would."""

from __future__ import annotations

import ast
import re
import runpy
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from eventmeta import DatabaseRefused, MetadataStore, NewEvent, verify_projection
from tests.project.test_examples import output_of, programs_of
from tests.support.helpers import user
from tests.support.processes import ROOT

# --- Web apps: programs of the pages, and what their clients see --------------------------------

CLIENT = """
from agents import set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message
from fastapi.testclient import TestClient

set_tracing_disabled(True)
agent.model = ScriptedModel([[assistant_message("In Basel.")] for _ in range(3)])
ann, eve = {NAME: "ann"}, {NAME: "eve"}
with TestClient(app) as client:
"""

README_APP = """
    print(client.post("/chats/c", params={"text": "Where?"}, headers=ann).text)
    for title in ("Rivers", "The Rhine"):
        assert client.put("/chats/c/title", params={"title": title}, headers=ann).status_code == 200
    print(client.get("/chats/c/titles", headers=ann).json())
    print(client.get("/chats/c/titles", headers=eve).json())
"""
WEB_APP = """
    chat = client.post("/chats", headers=ann).json()
    print(client.get("/chats", headers=ann).json() == [chat])
    print(client.get("/chats", headers=eve).json())
    print(client.post(f"/chats/{chat}/messages", params={"text": "Where?"}, headers=ann).text)
    print(len(client.get(f"/chats/{chat}/messages", headers=ann).json()))
    print(client.put(f"/chats/{chat}/title", params={"title": "Rivers"}, headers=ann).status_code)
    print(client.put(f"/chats/{chat}/title", params={"title": "Mine"}, headers=eve).status_code)
    print(client.put(f"/chats/{chat}/title", params={"title": chr(0)}, headers=ann).status_code)
"""
TUTORIAL = """
    chat = client.post("/chats", params={"title": "Rivers"}, headers=ann).json()
    print(client.get("/chats", headers=ann).json() == [{"id": chat, "title": "Rivers"}])
    print(client.post(f"/chats/{chat}/messages", params={"text": "Where?"}, headers=ann).text)
    renamed = client.put(f"/chats/{chat}/title", params={"title": "The Rhine"}, headers=ann)
    print(renamed.status_code)
    print([each["title"] for each in client.get(f"/chats/{chat}/titles", headers=ann).json()])
    print(client.get(f"/chats/{chat}/titles", headers=eve).status_code)
    print(client.get(f"/chats/{chat}/turns", headers=ann).json())
    print([each["requests"] for each in client.get("/usage", headers=ann).json()])
    print(client.post(f"/chats/{chat}/owner", params={"to": "eve"}, headers=ann).status_code)
    print(client.get(f"/chats/{chat}/titles", headers=ann).status_code)
    print(client.get(f"/chats/{chat}/titles", headers=eve).json())
"""


@pytest.mark.parametrize(
    ("page", "header", "calls", "printed"),
    [
        (
            "README.md",
            "User",
            README_APP,
            ["In Basel.", "[['user:ann', 'Rivers'], ['user:ann', 'The Rhine']]", "[]"],
        ),
        (
            "docs/how-to/web-app.md",
            "X-User",
            WEB_APP,
            ["True", "[]", "In Basel.", "2", "200", "404", "422"],
        ),
        (
            "docs/tutorial.md",
            "X-User",
            TUTORIAL,
            [
                "True",
                "In Basel.",
                "200",
                "['Rivers', 'The Rhine']",
                "404",
                "[{'turn': 1, 'asked': 'Where?'}]",
                "[1]",
                "200",
                "404",
                "[]",
            ],
        ),
    ],
    ids=["readme", "web-app", "tutorial"],
)
def test_web_app(page: str, header: str, calls: str, printed: list[str], tmp_path: Path) -> None:
    (program,) = programs_of((ROOT / page).read_text(encoding="utf-8"))
    script = tmp_path / "app.py"
    code = program.code + CLIENT.replace("NAME", repr(header)) + calls
    script.write_text(code, encoding="utf-8")
    assert output_of(script.name, folder=tmp_path).splitlines() == printed


def test_the_tutorial_starts_what_it_has_written() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert "uvicorn app:app" in page
    assert "`app.py`" in page


# --- Rights and queries -------------------------------------------------------------------------

RIGHTS = (ROOT / "docs" / "how-to" / "rights.md").read_text(encoding="utf-8")
GRANTS = [
    statement
    for block in re.findall(r"^```sql\n(.*?)^```", RIGHTS, re.MULTILINE | re.DOTALL)
    for statement in re.sub(r"--.*", "", block).split(";")
    if statement.strip()
]
FORBIDDEN = [
    "DELETE FROM agent_events",
    "UPDATE agent_events SET actor = 'nobody'",
    "TRUNCATE agent_events",
    "DROP TRIGGER agent_events_no_change ON agent_events",
    "ALTER TABLE agent_events DISABLE TRIGGER ALL",
    "DROP TABLE agent_events",
]


@pytest.mark.usefixtures("postgresql_backend")
async def test_roles_have_the_rights_they_need(structured: MetadataStore) -> None:
    await structured.create_tables()
    await execute(structured, GRANTS)
    roles = "eventmeta_app", "eventmeta_reader"
    try:
        app, reader = (
            MetadataStore.from_url(structured.engine.url.set(username=role, password="change me"))
            for role in roles
        )
        async with app, reader:
            await use(app)
            for statement in FORBIDDEN:
                with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
                    await execute(app, [statement])
            await read(reader)
            with pytest.raises(DatabaseRefused):
                await reader.session("alpha").set_metadata({"a": 1})
    finally:
        for role in roles:
            await execute(structured, [f"DROP OWNED BY {role}", f"DROP ROLE {role}"])


async def use(store: MetadataStore) -> None:
    session = store.session("alpha", user_id="ann")
    await session.add_items([user("one"), user("two")])
    await session.set_metadata({"a": 1, "b": 2})
    await session.delete_metadata(["a"])
    await session.pop_item()
    await store.create_session("ann", metadata={"c": 3})
    await session.transfer("bob")
    await store.user("ann").set_metadata({"plan": "pro"})
    await store.delete_user("ann")
    await store.append("alpha", NewEvent("refund_granted"))
    await store.session("alpha").clear_session()
    async for _ in store.subscribe("follower"):
        break
    await read(store)


async def read(store: MetadataStore) -> None:
    session = store.session("alpha")
    await session.get_metadata()
    await session.get_items(turns=1)
    assert await session.history()
    await session.get_metadata(as_of=3)
    await store.find_sessions_by_metadata("c", 3)
    assert [event async for event in store.events()]
    await store.get_usage("user")
    await store.status()
    assert await verify_projection(store) == []
    await execute(store, ["SELECT count(*) FROM agent_metadata_changes"])


async def execute(store: MetadataStore, statements: list[str]) -> None:
    for statement in statements:
        async with store.engine.begin() as connection:
            await connection.execute(text(statement))


@pytest.mark.each_dialect
async def test_the_sum_of_the_page_on_billing(structured: MetadataStore) -> None:
    page = (ROOT / "docs" / "how-to" / "billing.md").read_text(encoding="utf-8")
    (query,) = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    await structured.create_tables()
    await execute(structured, [query])


def test_the_revision_of_alembic_completes_a_database(tmp_path: Path) -> None:
    (program,) = programs_of((ROOT / "docs" / "how-to" / "alembic.md").read_text(encoding="utf-8"))
    script = tmp_path / "revision.py"
    script.write_text(program.code, encoding="utf-8")
    revision = output_of(script.name, folder=tmp_path)
    statements = re.findall(r"^    op\.execute\((.*)\)$", revision, re.MULTILINE)
    assert statements

    with sqlite3.connect(tmp_path / "app.db") as connection:
        for statement in statements:
            connection.execute(ast.literal_eval(statement))
    connection.close()
    assert output_of(script.name, folder=tmp_path) == ""


# --- Pictures -----------------------------------------------------------------------------------

PICTURES = ROOT / "docs" / "pictures"


async def test_the_picture_of_the_tables_is_theirs() -> None:
    script = runpy.run_path(str(PICTURES / "tables.py"))
    drawn = script["draw"](await script["reflected"]())
    assert drawn == (PICTURES / "tables.svg").read_text(encoding="utf-8")


def test_the_drawings_are_those_of_their_script() -> None:
    for name, draw in runpy.run_path(str(PICTURES / "flows.py"))["PICTURES"].items():
        assert draw() == (PICTURES / name).read_text(encoding="utf-8"), name


def test_the_picture_of_a_history_is_of_the_quickstart(tmp_path: Path) -> None:
    output = output_of(str(ROOT / "examples" / "quickstart.py"), folder=tmp_path)
    drawn = runpy.run_path(str(PICTURES / "history.py"))["draw"](output)
    assert timeless(drawn) == timeless((PICTURES / "history.svg").read_text(encoding="utf-8"))


def timeless(picture: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d\.\d{6}", "time", picture)
