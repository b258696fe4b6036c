"""Draw how writes, reads and projectors work: `python docs/pictures/flows.py`."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent

STYLE = """\
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; }
.on { text-anchor: middle; }
.small { font-size: 12px; fill: #57606a; }
.box { fill: #ffffff; stroke: #57606a; }
.table { fill: #ddf4ff; stroke: #0969da; }
.frame { fill: none; stroke: #8c959f; stroke-dasharray: 5 4; }
.arrow { fill: none; stroke: #1f2328; marker-end: url(#tip); }
.weak { fill: none; stroke: #57606a; stroke-dasharray: 4 4; marker-end: url(#tip); }
.life { stroke: #8c959f; stroke-dasharray: 2 4; }
"""
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#1f2328"/></marker></defs>'
)


@dataclass(frozen=True)
class Box:
    """A part, or a table, around its middle."""

    x: float
    y: float
    lines: tuple[str, ...]
    width: float = 150
    kind: str = "box"

    @property
    def height(self) -> float:
        """The height: of its lines, and some space."""
        return 18 * len(self.lines) + 18

    def svg(self) -> str:
        """Return the box with its text."""
        left, top = self.x - self.width / 2, self.y - self.height / 2
        size = f'width="{self.width:g}" height="{self.height:g}"'
        first = self.y - 9 * (len(self.lines) - 1) + 5
        return "\n".join(
            [
                f'<rect class="{self.kind}" x="{left:g}" y="{top:g}" {size} rx="5"/>',
                *(text(self.x, first + 18 * n, line) for n, line in enumerate(self.lines)),
            ]
        )

    def edge(self, towards: Box) -> tuple[float, float]:
        """Return the point of the edge that is nearest to another box."""
        across, down = towards.x - self.x, towards.y - self.y
        if abs(across) * self.height >= abs(down) * self.width:
            return self.x + (self.width if across > 0 else -self.width) / 2, self.y
        return self.x, self.y + (self.height if down > 0 else -self.height) / 2


def text(x: float, y: float, content: str, style: str = "on") -> str:
    """Return a line of text."""
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{escape(content)}</text>'


def arrow(source: Box, target: Box, label: str = "", kind: str = "arrow") -> str:
    """Return an arrow from one box to another, with what it stands for."""
    (x, y), (to_x, to_y) = source.edge(target), target.edge(source)
    line = f'<path class="{kind}" d="M {x:g} {y:g} L {to_x:g} {to_y:g}"/>'
    if not label:
        return line
    return line + "\n" + text((x + to_x) / 2, (y + to_y) / 2 - 6, label, "on small")


def picture(title: str, width: int, height: int, *parts: str) -> str:
    """Return a whole SVG."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE}</style>",
            TIP,
            f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>',
            *parts,
            "</svg>\n",
        ]
    )


def overview() -> str:
    """Return the drawing of the parts, from the app to the tables."""
    app = Box(90, 110, ("app,", "Agents SDK"), 120)
    session = Box(280, 60, ("MetadataSession",))
    store = Box(280, 160, ("MetadataStore",))
    writer = Box(480, 60, ("writer:", "one batch at a time"))
    reader = Box(480, 160, ("reader",))
    log = Box(680, 60, ("log: versions,", "event ids, retries"))
    dialect = Box(680, 160, ("dialect: SQLite,", "PostgreSQL, MySQL"))
    tables = [
        Box(120, 275, ("agent_events",), 170, "table"),
        Box(320, 275, ("agent_sessions_metadata",), 190, "table"),
        Box(500, 275, ("agent_streams",), 130, "table"),
        Box(685, 275, ("agent_sessions,", "agent_messages"), 170, "table"),
    ]
    parts = [app, session, store, writer, reader, log, dialect, *tables]
    frame = Box(400, 272, ("", "", "", "", ""), 770, "frame")
    return picture(
        "A write goes from the session through writer, log and dialect; a read through the reader",
        800,
        345,
        frame.svg(),
        text(30, 238, "one transaction", "small"),
        *(part.svg() for part in parts),
        arrow(app, session),
        arrow(app, store),
        arrow(store, session),
        arrow(session, writer, "writes"),
        arrow(session, reader, "reads"),
        arrow(writer, log),
        arrow(log, dialect),
        arrow(reader, dialect),
        '<path class="arrow" d="M 680 187 V 219"/>',
        '<path class="weak" d="M 120 293 V 312 H 320 V 293"/>',
        text(220, 307, "fold: the same Select", "on small"),
    )


def write() -> str:
    """Return the drawing of two calls that meet in the writer."""
    names = ["caller A", "caller B", "writer", "database"]
    places = dict(zip(names, (90, 270, 460, 650), strict=True))
    steps = [
        ("caller A", "writer", "set_metadata: checked, encoded, a command"),
        ("writer", "database", "batch 1: A"),
        ("caller B", "writer", "add_items"),
        ("", "", "B waits while batch 1 commits"),
        ("database", "writer", "committed"),
        ("writer", "caller A", "RecordedEvent"),
        ("writer", "database", "batch 2: B and others"),
        ("database", "writer", "committed"),
        ("writer", "caller B", "RecordedEvent"),
    ]
    parts = [
        f'<path class="life" d="M {x} 45 V {85 + 34 * len(steps)}"/>\n'
        + Box(x, 30, (name,), 120).svg()
        for name, x in places.items()
    ]
    for number, (source, target, label) in enumerate(steps):
        y = 85 + 34 * number
        if not source:
            parts.append(text(365, y, label, "on small"))
            continue
        x, to_x = places[source], places[target]
        kind = "weak" if source in ("database", "writer") and to_x < x else "arrow"
        parts.append(f'<path class="{kind}" d="M {x} {y} H {to_x}"/>')
        parts.append(text((x + to_x) / 2, y - 6, label, "on small"))
    return picture("The life of a write: two callers, two batches", 740, 395, *parts)


def projector() -> str:
    """Return the drawing of a step of the projector."""
    events = Box(110, 90, ("agent_events",), 160, "table")
    step = Box(400, 90, ("one transaction",))
    rows = Box(680, 40, ("the projection's table",), 190, "table")
    checkpoint = Box(680, 100, ("agent_checkpoints",), 190, "table")
    parked = Box(680, 170, ("agent_parked_streams",), 190, "table")
    return picture(
        "A projector applies events and moves its checkpoint in one transaction",
        800,
        210,
        *(box.svg() for box in (events, step, rows, checkpoint, parked)),
        arrow(events, step, "checkpoint < position"),
        text(258, 104, "<= horizon", "on small"),
        arrow(step, rows),
        arrow(step, checkpoint),
        '<path class="weak" d="M 400 108 V 170 H 585"/>',
        text(490, 164, "an event fails", "on small"),
        '<path class="weak" d="M 775 170 H 788 V 40 H 775"/>',
        text(757, 140, "retry", "on small"),
    )


PICTURES = {"overview.svg": overview, "write.svg": write, "projector.svg": projector}


def main() -> None:
    """Write the pictures."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
