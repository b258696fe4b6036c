"""Draw the history that the quickstart prints, as a terminal: `python docs/pictures/history.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
QUICKSTART = HERE.parent.parent / "examples" / "quickstart.py"
PICTURE = HERE / "history.svg"
SHOWN = ("Two actors set metadata", "Which sessions", "The history", "The metadata as it was")

CHARACTER, LINE = 12.2, 24.4  # as Rich draws them

# Fonts of the reader's machine only: nothing is loaded from elsewhere.
FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 WIDTH HEIGHT" role="img">
<title>The history of a session</title>
<style>
text {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
.{unique_id}-matrix {{ font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<g transform="translate(14, 14)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def draw(output: str) -> str:
    """Return an SVG of the sections of ``output`` that are ``SHOWN``."""
    sections = re.split(r"\n\n(?=.+\n-+\n)", output.strip())
    shown = [
        [line for line in section.splitlines() if not line.startswith(("  user:", "  clerk:"))]
        for section in sections
        if section.startswith(SHOWN)
    ]
    width = max(len(line) for section in shown for line in section)
    console = Console(record=True, width=width, file=StringIO(), color_system="truecolor")
    for title, _, *body in shown:
        console.print(Text(title, style="bold #79c0ff"))
        for line in body:
            console.print(coloured(line))
        console.print()
    lines = sum(len(body) + 2 for _, _, *body in shown) - 1
    svg = console.export_svg(code_format=FRAME, unique_id="t")
    svg = re.sub(r' clip-path="[^"]*"|<text [^>]*>\n</text>', "", svg)
    size = {"WIDTH": f"{width * CHARACTER + 28:.0f}", "HEIGHT": f"{lines * LINE + 28:.0f}"}
    svg = re.sub("WIDTH|HEIGHT", lambda found: size[found[0]], svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def coloured(line: str) -> Text:
    """Return ``line`` with actors and event types in colours."""
    text = Text(line, style="#e6edf3")
    text.highlight_regex(r"triage-bot|support:bob", "#ffa657")
    text.highlight_regex(r"\b(metadata_set|items_added)\b", "#7ee787")
    text.highlight_regex(r"^version.*", "bold #8b949e")
    return text


def main() -> None:
    """Run the quickstart, and write the picture."""
    command = [sys.executable, str(QUICKSTART)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    PICTURE.write_text(draw(done.stdout), encoding="utf-8")


if __name__ == "__main__":
    main()
