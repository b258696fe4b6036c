"""The reference has every public name, option, error, event type, table and column."""

from __future__ import annotations

import re
import runpy

import pytest
from agents import Agent, RunConfig, Runner, Usage
from agents.testing import ModelStep, ScriptedModel, assistant_message
from sqlalchemy import Connection, inspect

import eventmeta
from eventmeta import (
    EventMetaError,
    MetadataSession,
    MetadataStore,
    RecordedEvent,
    TableOptions,
    UsageHooks,
    WriteOptions,
)
from eventmeta.core.events import BUILT_IN_TYPES
from tests.support.helpers import user
from tests.support.processes import ROOT

REFERENCE = ROOT / "docs" / "reference"
OPTIONS, ERRORS, EVENTS, TABLES = (
    (REFERENCE / f"{name}.md").read_text(encoding="utf-8")
    for name in ("options", "errors", "events", "tables")
)
NAMES = [
    name
    for name in eventmeta.__all__
    if isinstance(getattr(eventmeta, name), type)
    and issubclass(getattr(eventmeta, name), EventMetaError)
]
DOCUMENTED = [name for name in eventmeta.__all__ if callable(getattr(eventmeta, name))]
USAGE = Usage(requests=1, input_tokens=9, output_tokens=1, total_tokens=10)


# --- Names, options, errors ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    text: str = runpy.run_path(str(REFERENCE / "api.py"))["page"]()
    return text


@pytest.mark.parametrize("name", eventmeta.__all__)
def test_public_name_is_on_the_page_of_names(name: str, page: str) -> None:
    assert f"\n### {name}\n" in page


def test_docstrings_are_on_the_page_of_names(page: str) -> None:
    first_lines = [
        (getattr(eventmeta, name).__doc__ or "").partition("\n")[0] for name in DOCUMENTED
    ]
    assert [line for line in first_lines if line.replace("``", "`") not in page] == []


@pytest.mark.parametrize("cls", [MetadataSession, MetadataStore], ids=lambda cls: cls.__name__)
def test_public_methods_are_on_the_page_of_names(cls: type, page: str) -> None:
    names = [name for name in dir(cls) if not name.startswith("_")]
    assert [name for name in names if f"\n#### {cls.__name__}.{name}\n" not in page] == []


def test_the_page_of_names_has_whole_fences(page: str) -> None:
    fences = re.findall(r"^```\w*$", page, re.MULTILINE)
    assert fences == ["```text", "```"] * (len(fences) // 2)


@pytest.mark.parametrize(
    "option", sorted({*TableOptions.__annotations__, *WriteOptions.__annotations__})
)
def test_option_has_a_row(option: str) -> None:
    assert f"\n| `{option}` |" in OPTIONS


@pytest.mark.parametrize("name", NAMES)
def test_error_has_a_remedy(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", ERRORS, re.MULTILINE)
    assert row.rpartition("|")[2].strip()


@pytest.mark.parametrize("name", NAMES)
def test_attributes_of_an_error_have_a_place(name: str) -> None:
    doc = getattr(eventmeta, name).__doc__ or ""
    attributes = re.findall(r"^ {8}(\w+): ", doc.partition("Attributes:")[2], re.MULTILINE)
    assert [each for each in attributes if f"`{each}`" not in ERRORS] == []


# --- Events -------------------------------------------------------------------------------------


@pytest.fixture
async def recorded(structured: MetadataStore) -> list[RecordedEvent]:
    """At least one event of each type."""
    session = structured.session("alpha", user_id="ann")
    model = ScriptedModel([ModelStep(output=[assistant_message("Hello!")], usage=USAGE)])
    async with UsageHooks() as hooks:
        agent, config = Agent(name="Helper", model=model), RunConfig(tracing_disabled=True)
        await Runner.run(agent, "Hi", session=session, hooks=hooks, run_config=config)
    await session.set_metadata({"a": 1, "b": 2})
    await session.delete_metadata(["a"])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot
    assert await snapshot.replace_suffix(0, snapshot.items[:1])
    await session.add_items([user("one more")])
    await session.pop_item()
    await session.transfer("bob", with_history=True)
    await structured.user("ann").set_metadata({"plan": "pro"})
    await structured.user("ann").delete_metadata(["plan"])
    await structured.session("alpha").clear_session()
    await structured.delete_user("bob")
    return [event async for event in structured.events()]


@pytest.mark.only_on("sqlite-memory")
async def test_every_event_has_its_payload_in_the_reference(recorded: list[RecordedEvent]) -> None:
    assert {event.type for event in recorded} == BUILT_IN_TYPES
    for event in recorded:
        found = [title for title in sections(EVENTS) if event.type in title.split()]
        assert found, f"{event.type} has no section"
        text = "\n".join(sections(EVENTS)[title] for title in found)
        assert [key for key in event.data if f"`{key}`" not in text] == [], event.type


def sections(page: str) -> dict[str, str]:
    _, *parts = re.split(r"^###? (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


# --- Tables -------------------------------------------------------------------------------------


@pytest.mark.each_dialect
async def test_every_table_and_column_is_in_the_reference(structured: MetadataStore) -> None:
    def columns(connection: Connection) -> dict[str, list[str]]:
        database = inspect(connection)
        return {
            name: [column["name"] for column in database.get_columns(name)]
            for name in [*database.get_table_names(), *database.get_view_names()]
        }

    await structured.create_tables()
    async with structured.engine.connect() as connection:
        found = await connection.run_sync(columns)
    assert found.keys() >= {"agent_events", "agent_usage", "agent_metadata_changes"}
    assert found.pop("agent_events_guard", ["version"])
    documented = sections(TABLES)
    for table, names in found.items():
        assert table in documented
        assert [name for name in names if f"`{name}`" not in documented[table]] == [], table
