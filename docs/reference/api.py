"""Write the page of public names from their docstrings: `python docs/reference/api.py`.

`make docs` runs it. The page, `api.md` beside this file, is not kept in the repository.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import eventmeta
import projections

PAGE = Path(__file__).with_suffix(".md")

INTRODUCTION = """\
# Public names

Everything that `eventmeta` exports, and what `projections` exports for read models of your own.
Nothing else is public. [Options](options.md) and [errors](errors.md) have pages of their own.
"""
OF_PROJECTIONS = (
    "Projection",
    "AppliedProjection",
    "Event",
    "Events",
    "AnySelect",
    "METADATA_EVENTS",
)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION, "## eventmeta\n"]
    for name in sorted(eventmeta.__all__, key=str.lower):
        parts += described(name, getattr(eventmeta, name))
    parts.append("## projections\n")
    for name in OF_PROJECTIONS:
        parts += described(name, getattr(projections, name))
    return "\n".join(parts)


def described(name: str, value: Any) -> Iterator[str]:
    """Yield the section of a public name."""
    yield f"### {name}\n"
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        yield f"`{value!r}`\n"
        return
    if inspect.isclass(value) and issubclass(value, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
        yield f"An error, a kind of {bases}.\n"
    elif inspect.isroutine(value) or not is_dataclass(value):
        yield signature(name, value)
    yield markdown(inspect.getdoc(value))
    if inspect.isclass(value) and not issubclass(value, Exception):
        for member, found in sorted(methods(value).items()):
            yield f"#### {name}.{member}\n"
            if not isinstance(found, property):
                yield signature(member, getattr(value, member))
            yield markdown(inspect.getdoc(found))


def methods(cls: type) -> dict[str, Any]:
    """Return the public methods and properties that a class has from this project."""
    kinds = (property, classmethod, staticmethod, FunctionType)
    return {
        name: member
        for base in reversed(cls.__mro__)
        if base.__module__.partition(".")[0] in ("eventmeta", "projections")
        for name, member in vars(base).items()
        if not name.startswith("_") and isinstance(member, kinds)
    }


def signature(name: str, value: Any) -> str:
    """Return a call as code, each parameter on a line of its own if it is long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [
        re.sub(r"\beventmeta(\.\w+)*\.", "", str(each)).replace("'", "")
        for each in found.parameters.values()
        if each.name not in ("self", "cls")
    ]
    kinds = [each.kind for each in found.parameters.values() if each.name not in ("self", "cls")]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    text = f"{name}({', '.join(parameters)})"
    if len(text) > 90:
        text = f"{name}(\n    " + ",\n    ".join(parameters) + ",\n)"
    prefix = "await " if inspect.iscoroutinefunction(value) else ""
    return f"```text\n{prefix}{text}\n```\n"


def markdown(docstring: str | None) -> str:
    """Return a docstring as Markdown: its sections as lists, its code in fences."""
    lines: list[str] = []
    section, in_code = "", False
    for line in (docstring or "").replace("``", "`").splitlines():
        match = SECTION.fullmatch(line)
        if in_code and line and not line.startswith("    "):
            in_code = False
            lines += ["```", ""]
        if in_code:
            lines.append(line[4:])
        elif match:
            section = match[1]
            lines += ["", f"**{section}**", ""]
        elif line.endswith("::"):
            in_code = True
            lines += [line[:-1] if line.strip(": ") else "", "", "```text"]
        elif section in ("Args", "Attributes", "Raises"):
            lines.append(entry(line))
        else:
            lines.append(line.strip())
    if in_code:
        lines.append("```")
    text = re.sub(r"\[`([^`]+)`\]\[[\w.]+\]", r"`\1`", "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).replace("```text\n\n", "```text\n") + "\n"


def entry(line: str) -> str:
    """Return a line of a section that lists names."""
    name, colon, text = line.strip().partition(": ")
    if line.startswith("     ") or not colon:
        return f"  {line.strip()}" if line.strip() else ""
    return f"- `{name.strip('`')}`: {text}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
