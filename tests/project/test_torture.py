"""The checks of the campaign of faults notice every promise that is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventmeta import MetadataStore, Position, RecordedEvent
from tests.support.rebuilding import trace
from tests.torture import checks
from tests.torture.journal import Attempt, History, Journal, read


@dataclass
class World:
    """Two sessions: what writers wrote down, and what the database says."""

    history: History = field(default_factory=History)
    events: list[RecordedEvent] = field(default_factory=list[RecordedEvent])
    items: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    lines: int = 0

    def write(self, key: str, session_id: str, kind: str, texts: list[str], data: Any) -> None:
        """One write after the other, all acknowledged."""
        self.history.attempts[key] = Attempt(
            key, session_id, kind, texts, self.lines, self.lines + 1, "acknowledged"
        )
        self.lines += 2
        version = 1 + sum(event.stream_id == session_id for event in self.events)
        event = RecordedEvent(
            Position(len(self.events) + 1),
            "session",
            session_id,
            version,
            key,
            {"add": "items_added", "pop": "item_popped"}.get(kind, "metadata_set"),
            data,
            None,
            {},
            datetime.now(UTC),
        )
        self.events.append(event)
        self.items.setdefault(session_id, []).extend(texts)

    def found(self) -> list[str]:
        """What the checks say."""
        positions = [event.position for event in self.events]
        return [
            *checks.recorded_once(self.events, self.history),
            *checks.counted_through(self.events),
            *checks.seen_once("the feed", self.events, self.seen or positions),
            *checks.in_order(self.events, self.history),
            *checks.items_in_order(self.items, self.history),
            *checks.items_as_recorded(self.items, self.events, self.history),
        ]

    seen: list[int] = field(default_factory=list[int])


@pytest.fixture
def world() -> World:
    made = World()
    made.write("a", "s", "add", ["a1", "a2"], {"item_ids": [1, 2]})
    made.write("b", "t", "add", ["b1"], {"item_ids": [3]})
    made.write("c", "s", "set", [], {"changes": []})
    made.write("d", "s", "add", ["d1", "d2"], {"item_ids": [4, 5]})
    made.write("e", "s", "pop", [], {"item_id": 5})
    made.items["s"].remove("d2")
    return made


def test_nothing_is_found_where_all_is_well(world: World) -> None:
    assert world.found() == []


def lose(world: World) -> None:
    del world.events[1]


def repeat(world: World) -> None:
    world.events.append(replace(world.events[-1], position=Position(9), version=5))


def refuse(world: World) -> None:
    world.history.attempts["c"].ending = "refused"


def leave_a_gap(world: World) -> None:
    world.events[-1] = replace(world.events[-1], version=9)


def skip(world: World) -> None:
    world.seen = [1, 2, 4, 5]


def see_twice(world: World) -> None:
    world.seen = [1, 2, 2, 3, 4, 5]


def reorder(world: World) -> None:
    a, c = world.events[0], world.events[2]
    world.events[0] = replace(c, position=a.position, version=a.version)
    world.events[2] = replace(a, position=c.position, version=c.version)


def reorder_items(world: World) -> None:
    world.items["s"] = ["d1", "a1", "a2"]


def tear_apart(world: World) -> None:
    world.items["s"] = ["a2", "a1", "d1"]


def keep_what_was_popped(world: World) -> None:
    world.items["s"].append("d2")


def pop_another(world: World) -> None:
    world.events[-1] = replace(world.events[-1], data={"item_id": 4})


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (lose, "lost: b"),
        (repeat, "recorded 2 times: e"),
        (refuse, "recorded though refused: c"),
        (leave_a_gap, "version 9 of"),
        (skip, "skipped [3]"),
        (see_twice, "saw 6 of 5"),
        (reorder, "a was acknowledged before c began"),
        (reorder_items, "come before those of a"),
        (tear_apart, "apart or out of order"),
        (keep_what_was_popped, "not those that the log tells"),
        (pop_another, "removed item 4, not 5"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_broken_promise_is_found(world: World, plant: Callable[[World], None], says: str) -> None:
    plant(world)
    assert [each for each in world.found() if says in each], world.found()


def test_the_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for key in "ab":
        journal.write(say="begin", key=key, session_id="s", kind="add", texts=["1"])
    journal.write(say="end", key="a", ending="acknowledged", seconds=0.5)
    journal.write(say="unexpected", error="oops")
    history = read(tmp_path / "journal")
    assert history.attempts["a"] == Attempt("a", "s", "add", ["1"], 0, 2, "acknowledged", 0.5)
    assert history.attempts["b"].ending == "unknown"
    assert history.unexpected == ["oops"]


async def test_a_table_that_differs_from_the_log_is_found(store: MetadataStore) -> None:
    """The check of a whole database, against an empty journal."""
    store.register(trace())
    await store.create_tables()
    event = await store.session("s").set_metadata({"k": 1})
    assert event
    fed = [int(event.position)]
    assert await checks.violations(store, History(), fed, fed) == []
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE agent_sessions_metadata SET value = '2'")
    found = await checks.violations(store, History(), fed, [])
    assert [each.partition(":")[0].partition(" saw")[0] for each in found] == [
        "the projection",
        "differs from the log",
    ]
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE agent_sessions_metadata SET value = '1'")
