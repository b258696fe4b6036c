"""The examples, and the code in the README and the docs, do what they say."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.processes import ROOT, run_python

QUICKSTART = ROOT / "examples" / "quickstart.py"
README = ROOT / "README.md"

SKIP = "<!-- skip -->"
ONE_PROGRAM = "<!-- one program -->"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def output_of(*arguments: str, folder: Path) -> str:
    """Its output, with every warning an error and no key of an API at hand."""
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONUTF8": "1"}
    done = run_python(*arguments, folder=folder, environment=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


# --- The example --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("quickstart")
    output = output_of(str(QUICKSTART), folder=directory)
    assert list(directory.iterdir()) == []
    return output


def section(output: str, start: str) -> list[str]:
    """The lines under the heading that begins with ``start``."""
    parts = re.split(r"\n\n(?=.+\n-+\n)", output.strip())
    (found,) = [part for part in parts if part.startswith(start)]
    title, line, *body = found.splitlines()
    assert line == "-" * len(title)
    return body


def test_the_conversation_goes_on(output: str) -> None:
    assert len(section(output, "The app as it was")) == 2
    opened = section(output, "One import later")
    assert opened[0].startswith("2 items")
    assert any(line.strip().startswith("clerk: ") for line in opened)


def test_the_metadata_is_printed_and_the_session_found(output: str) -> None:
    (metadata,) = section(output, "Two actors")
    assert "'priority': 1" in metadata
    assert section(output, "Which sessions")[0] == "['chat-1']"


def test_the_history_is_a_table_with_aligned_columns(output: str) -> None:
    titles, *rows = section(output, "The history")
    starts = [match.start() for match in re.finditer(r"(?<=  )\S|^\S", titles)]
    assert len(starts) == 5
    assert [row.split()[0] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    for row in rows:
        assert all(row.ljust(start + 1)[start - 1] == " " for start in starts[1:])
    assert {"triage-bot", "support:bob"} <= {word for row in rows for word in row.split()}
    assert any("priority: 2 -> 1" in row for row in rows)


def test_the_state_before_the_last_change(output: str) -> None:
    (metadata,) = section(output, "The metadata as it was before support:bob")
    assert "'priority': 2" in metadata


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("sessions_per_day.py", ["home 4", "work 5"]),
        ("full_text.py", ["['a', 'b']", "['b']"]),
    ],
)
def test_a_projection_of_ones_own(name: str, printed: list[str], tmp_path: Path) -> None:
    assert output_of(str(ROOT / "examples" / name), folder=tmp_path).splitlines() == printed


# --- The README and the docs ---------------------------------------------------------------------


class Block(NamedTuple):
    """The Python code of a page at one place."""

    line: int
    code: str
    skipped: bool


def blocks_of(page: str) -> list[Block]:
    """All ```python blocks; one right below ``<!-- skip -->`` needs a server."""
    return [
        Block(
            line=page.count("\n", 0, match.start(1)),
            code=match[1],
            skipped=page[: match.start()].rstrip().endswith(SKIP),
        )
        for match in FENCE.finditer(page)
    ]


def programs_of(page: str) -> list[Block]:
    """The programs of a page: each block is one, or all together where the page says so."""
    blocks = [block for block in blocks_of(page) if not block.skipped]
    if blocks and ONE_PROGRAM in page:
        return [Block(blocks[0].line, "\n".join(block.code for block in blocks), skipped=False)]
    return blocks


def as_script(blocks: list[Block]) -> str:
    """The blocks one after another in one place; each may `await`, or call `asyncio.run` itself.

    A failure is reported at its line of the page.
    """
    return "\n".join(
        [
            "import ast, asyncio, inspect",
            "space = {'__name__': '__main__'}",
            "with asyncio.Runner() as runner:",
            f"    for line, source in {[(b.line, b.code) for b in blocks if not b.skipped]!r}:",
            "        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT",
            "        code = compile('\\n' * line + source, '<README.md>', 'exec', flags=flags)",
            "        done = eval(code, space)",
            "        if inspect.iscoroutine(done):",
            "            runner.run(done)",
        ]
    )


def run_page(page: str, directory: Path) -> str:
    return output_of("-c", as_script(blocks_of(page)), folder=directory)


def test_the_code_in_the_readme_runs(tmp_path: Path) -> None:
    page = README.read_text(encoding="utf-8")
    assert [block for block in blocks_of(page) if not block.skipped]
    run_page(page, tmp_path)


PAGE = f"""
```python
import asyncio
a = 1
```
```bash
exit 1
```
{SKIP}

```python
raise SystemExit("skipped")
```
Text.
```python
await asyncio.sleep(0)
print(a + 1)
```
"""


def test_blocks_run_in_order_in_one_place_and_may_await(tmp_path: Path) -> None:
    assert [block.skipped for block in blocks_of(PAGE)] == [False, True, False]
    assert run_page(PAGE, tmp_path) == "2\n"


def test_a_failing_block_is_reported_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"line 17, in <module>\s+ZeroDivisionError"):
        run_page(PAGE.replace("a + 1", "a / 0"), tmp_path)
