"""The documents name everything there is, and what their examples print is what they say."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
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
from tests.project.test_examples import output_of, programs_of
from tests.support.processes import run_python

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api.md"
"""Written by docs/reference/api.py when the site is built."""

MAX_README_LINES = 200
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if path != API
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
OPTIONS = PAGES["docs/reference/options.md"]
ERRORS_PAGE = PAGES["docs/reference/errors.md"]
BENCHMARKS = PAGES["docs/benchmarks.md"]
WITH_CODE = [name for name, page in PAGES.items() if programs_of(page)]

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
    listed = set(re.findall(r"`(\w+)`|\b(\w+)=None", OPTIONS))
    names = {name for pair in listed for name in pair} | {"url"}
    assert options(function) <= names


@pytest.mark.parametrize("option", sorted(WriteOptions.__annotations__))
def test_write_option_is_documented(option: str) -> None:
    assert f"| `{option}` |" in OPTIONS


def test_defaults_are_as_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", OPTIONS, re.MULTILINE)
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
    assert re.search(rf"^[│├└─ ]*{name}\b", ERRORS_PAGE, re.MULTILINE)


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_target_is_documented(target: str) -> None:
    assert f"make {target}" in ALL


def test_benchmark_options_are_documented() -> None:
    (commands,) = (action for action in parser()._actions if not action.option_strings)
    assert commands.choices
    choices = dict(commands.choices)
    assert [name for name in choices if f"python -m benchmarks {name} " not in BENCHMARKS] == []
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
    assert f"`{name}`" in BENCHMARKS


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
    assert f"| `{package.name}/` | {purpose} |" in PAGES["docs/architecture.md"]


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= MAX_README_LINES


HARD_TO_READ = re.compile(r"(?i)\b(whoever|lest|anew|as far as|is told|has come to|what all)\b")


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"docs/architecture.md", "CHANGELOG.md"}))
def test_english_is_plain(name: str) -> None:
    lines = PAGES[name].splitlines()
    assert [line for line in lines if HARD_TO_READ.search(line)] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    links = re.findall(r"\]\(([^)#:]*)(?:#([\w-]*))?\)", PAGES[name])
    broken = []
    for target, anchor in links:
        leads_to = (file.parent / target).resolve() if target else file
        if leads_to == API:
            continue
        known = leads_to.exists() and (not anchor or anchor in anchors(leads_to))
        if not known:
            broken.append(f"{target}#{anchor}")
    assert broken == []


@cache
def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    page = re.sub(r"(?ms)^```.*?^```$", "", file.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)$", page)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", WITH_CODE)
def test_examples_print_what_they_say(name: str, tmp_path: Path) -> None:
    """Each is a program of its own, in one folder.

    A comment after ``print(…)`` is its output; comment lines below it are the output of a loop. A
    program of which no output is shown may print anything.
    """
    for number, block in enumerate(programs_of(PAGES[name])):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block.code, encoding="utf-8")
        output = output_of(script.name, folder=tmp_path).splitlines()
        shown = shown_output(block.code)
        if shown or "print(" not in block.code:
            assert output == shown, f"{name}, line {block.line}"


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


def test_all_code_is_typed(tmp_path: Path) -> None:
    """With the settings of this project, so that type checkers of readers agree as well."""
    pytest.importorskip("mypy")
    for page, text in PAGES.items():
        for number, block in enumerate(programs_of(text)):
            name = re.sub(r"\W", "_", page.removesuffix(".md").lower())
            (tmp_path / f"{name}_{number}.py").write_text(block.code, encoding="utf-8")
    done = run_python("-m", "mypy", "--no-error-summary", str(tmp_path), timeout=300)
    assert done.stdout.replace(str(tmp_path), "") == ""
    assert done.returncode == 0, done.stderr
