"""Draw the tables of a store, as a new database has them: `python docs/pictures/tables.py`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect

from eventmeta import MetadataStore

PICTURE = Path(__file__).parent / "tables.svg"

# From left to right, from top to bottom.
COLUMNS = [
    ["agent_events", "agent_streams", "agent_store_settings"],
    ["agent_users", "agent_sessions", "agent_messages", "agent_sessions_metadata"],
    ["agent_conversation_messages", "agent_tool_calls"],
    ["agent_usage", "agent_checkpoints", "agent_parked_streams"],
]
WIDTH, GAP, LINE, TITLE = 235, 70, 17, 26

STYLE = """\
text { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; }
.title { font-weight: bold; fill: #ffffff; }
.key { font-weight: bold; }
.box { fill: #ffffff; stroke: #57606a; }
.head { fill: #0969da; }
.reference { fill: none; stroke: #cf222e; stroke-width: 1.5; }
"""


@dataclass
class Box:
    """A table: where it is drawn, and what is in it."""

    name: str
    x: float
    y: float
    columns: list[str]
    keys: list[str]
    references: list[tuple[str, str, str]]
    """The column, the other table, and the column there."""

    @property
    def height(self) -> float:
        """The height with the title."""
        return TITLE + LINE * len(self.columns) + 8

    def middle(self, column: str) -> float:
        """Return the y of a column."""
        return self.y + TITLE + LINE * self.columns.index(column) + LINE / 2 + 2

    def drawn(self) -> str:
        """Return the SVG of the box."""
        lines = [
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{WIDTH}" height="{self.height}"/>',
            f'<rect class="head" x="{self.x}" y="{self.y}" width="{WIDTH}" height="{TITLE}"/>',
            f'<text class="title" x="{self.x + 8}" y="{self.y + 17}">{escape(self.name)}</text>',
        ]
        for column in self.columns:
            style = ' class="key"' if column in self.keys else ""
            y = self.middle(column) + 4
            lines.append(f'<text{style} x="{self.x + 8}" y="{y}">{escape(column)}</text>')
        return "\n".join(lines)


Shape = tuple[list[str], list[str], list[tuple[str, str, str]]]
"""Columns, primary key and foreign keys of a table."""


async def reflected() -> dict[str, Shape]:
    """Return columns, primary key and foreign keys of every table of a new store."""

    def read(connection: Connection) -> Any:
        database = inspect(connection)
        return {
            name: (
                [column["name"] for column in database.get_columns(name)],
                database.get_pk_constraint(name)["constrained_columns"],
                [
                    (*key["constrained_columns"], key["referred_table"], *key["referred_columns"])
                    for key in database.get_foreign_keys(name)
                ],
            )
            for name in database.get_table_names()
        }

    async with MetadataStore.from_url("sqlite+aiosqlite://", structured_metadata=True) as store:
        await store.create_tables()
        async with store.engine.connect() as connection:
            return await connection.run_sync(read)


def draw(tables: dict[str, Shape]) -> str:
    """Return the picture of ``tables``."""
    boxes: dict[str, Box] = {}
    for number, names in enumerate(COLUMNS):
        y = 10.0
        for name in names:
            box = boxes[name] = Box(name, 10 + number * (WIDTH + GAP), y, *tables[name])
            y += box.height + 24
    missing = tables.keys() - boxes.keys() - {"sqlite_sequence"}
    if missing:
        raise SystemExit(f"put these tables into COLUMNS: {sorted(missing)}")
    width = 20 + len(COLUMNS) * (WIDTH + GAP) - GAP
    height = max(box.y + box.height for box in boxes.values()) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img">',
        "<title>The tables of a store. Bold: primary key. Lines: foreign keys.</title>",
        f"<style>\n{STYLE}</style>",
        f'<rect width="{width}" height="{height:g}" fill="#f6f8fa"/>',
        *(box.drawn() for box in boxes.values()),
        *(
            line(box, column, boxes[other], target)
            for box in boxes.values()
            for column, other, target in box.references
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def line(box: Box, column: str, other: Box, target: str) -> str:
    """Return the line of a foreign key: along the side, or through the gap between two columns."""
    y, to_y = box.middle(column), other.middle(target)
    if box.x == other.x:
        x, to_x, bend = box.x, other.x, box.x - (36 if other.y < 50 else 18)
    else:
        x, to_x, bend = box.x, other.x + WIDTH, box.x - GAP / 2
    path = f"M {x} {y} H {bend} V {to_y} H {to_x}"
    return f'<path class="reference" d="{path}"/><circle cx="{to_x}" cy="{to_y}" r="3"/>'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(asyncio.run(reflected())), encoding="utf-8")


if __name__ == "__main__":
    main()
