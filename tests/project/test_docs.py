"""The documents name everything there is, and what their examples print is what they say."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import eventmeta
from benchmarks.cli import parser
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS
from eventmeta import MetadataSession, MetadataStore, TableOptions, WriteOptions
from eventmeta.core import database_errors, errors, projection_errors
from eventmeta.tables.names import TableNames
from tests.project.test_examples import blocks_of, output_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
ALL = "\n".join([README, *DOCS.values()])

MAKE_TARGETS = re.findall(
    r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
)
PACKAGES = [
    ROOT / "projections",
    *sorted(path.parent for path in ROOT.glob("eventmeta/*/__init__.py")),
]


def options(function: Callable[..., Any]) -> set[str]:
    named = inspect.signature(function).parameters.values()
    own = {each.name for each in named if each.kind is not each.VAR_KEYWORD} - {"self"}
    return own | TableOptions.__annotations__.keys()


@pytest.mark.parametrize(
    "function",
    [
        MetadataSession,
        MetadataSession.from_url,
        MetadataStore,
        MetadataStore.from_url,
    ],
    ids=lambda function: function.__qualname__,
)
def test_options_are_documented(function: Callable[..., Any]) -> None:
    listed = set(re.findall(r"`(\w+)`|\b(\w+)=None", README.partition("## Options")[2]))
    names = {name for pair in listed for name in pair} | {"url"}
    assert options(function) <= names


@pytest.mark.parametrize("option", sorted(WriteOptions.__annotations__))
def test_write_option_is_documented(option: str) -> None:
    assert f"| `{option}` |" in README


def test_defaults_are_as_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", README, re.MULTILINE)
    signatures = map(inspect.signature, (MetadataStore, MetadataSession))
    parameters = dict(each for signature in signatures for each in signature.parameters.items())
    defaults = {name: each.default for name, each in parameters.items()} | asdict(TableNames())
    assert rows
    assert [row for row in rows if str(defaults[row[0]]) != row[1]] == []


@pytest.mark.parametrize("name", eventmeta.__all__)
def test_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", ALL)


@pytest.mark.parametrize("cls", [MetadataSession, MetadataStore], ids=lambda cls: cls.__name__)
def test_public_methods_are_documented(cls: type) -> None:
    assert [name for name in dir(cls) if not name.startswith("_") and name not in ALL] == []


ERRORS = [*errors.__all__, *database_errors.__all__, *projection_errors.__all__]


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_in_the_tree(name: str) -> None:
    assert re.search(rf"^[│├└─ ]*{name}\b", README, re.MULTILINE)


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_target_is_documented(target: str) -> None:
    assert f"make {target}" in ALL


def test_benchmark_options_are_documented() -> None:
    (commands,) = (action for action in parser()._actions if not action.option_strings)
    assert commands.choices
    choices = dict(commands.choices)
    assert [name for name in choices if f"python -m benchmarks {name} " not in README] == []
    found = [
        flag
        for each in choices.values()
        for action in each._actions
        for flag in action.option_strings
    ]
    assert {"--backend", "--callers", "--out"} <= set(found)
    assert [flag for flag in found if flag not in ("-h", "--help") and flag not in ALL] == []


@pytest.mark.parametrize("name", [*SCENARIOS, *PEERS])
def test_what_the_benchmarks_compare_is_documented(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_lists_its_modules(package: Path) -> None:
    """Its docstring is the map of it, and the architecture names it."""
    here = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    source = (package / "__init__.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    purpose, listed = text.splitlines()[0], text.rpartition("\n\n")[2].splitlines()
    assert {line.split("  ")[0] for line in listed} == here - {"__init__"}
    assert f"| `{package.name}/` | {purpose} |" in DOCS["architecture.md"]


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in DOCS)])
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    targets = re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", file.read_text(encoding="utf-8"))
    assert [target for target in targets if not (file.parent / target).exists()] == []


def test_examples_print_what_they_say(tmp_path: Path) -> None:
    """Each is a program of its own, in one folder.

    A comment after ``print(…)`` is its output; comment lines below it are the output of a loop.
    """
    for number, block in enumerate(blocks_of(README)):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block.code, encoding="utf-8")
        output = output_of(script.name, folder=tmp_path)
        assert output.splitlines() == shown_output(block.code), f"README.md, line {block.line}"


def shown_output(code: str) -> list[str]:
    shown = []
    lines = code.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.search(r"\bprint\(.*\)  # (.*)$", line):
            shown.append(match[1])
        elif "print(" in line and following.lstrip().startswith("# "):
            start = lines.index(line) + 1
            for comment in lines[start:]:
                if not comment.lstrip().startswith("# "):
                    break
                shown.append(comment.lstrip()[2:])
    return shown


def test_the_query_is_the_one_that_is_tested() -> None:
    printed = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    assert printed == re.findall(r"```sql\n(.*?)```", DOCS["queries.md"], re.DOTALL)[:1]
