"""Inline = catch-up = rebuild = replay = plain Python, for every built-in projection.

Over any program of changes to sessions and users, divided into batches in any way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, select

from eventmeta import MetadataStore, RecordedEvent, verify_projection
from eventmeta.core.events import USAGE_RECORDED
from eventmeta.log.commands import Append, EventData
from eventmeta.projector.worker import Follower
from projections import Projection, metadata_projection, usage_projection, users_projection
from projections.users import USER_EVENTS
from tests.read_models.test_projection_property import FEW_EXAMPLES, KEYS, running, values
from tests.store.test_users import SESSIONS, USERS
from tests.support.acting import ADMIN, Actor, together
from tests.support.backends import Backend
from tests.support.sample_projections import follower_of, log_of

pytestmark = pytest.mark.each_dialect

Rows = list[tuple[Any, ...]]


# --- Programs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Something to do to a session or a user."""

    kind: str
    stream: str
    argument: Any = None

    def command(self) -> Any:
        actor = Actor(self.argument) if self.kind == "claim" else ADMIN
        match self.kind:
            case "set":
                return actor.set(self.stream, self.argument)
            case "delete":
                return actor.delete(self.stream)
            case "clear":
                return actor.clear(self.stream)
            case "claim" | "add":
                return actor.add(self.stream)
            case "note":
                return actor.note(self.stream)
            case "use":
                return actor.session(
                    Append, self.stream, fact=EventData(USAGE_RECORDED, self.argument)
                )
            case "set user":
                return actor.set_user(self.stream, self.argument)
            case "delete of user":
                return actor.delete_user_metadata(self.stream, self.argument)
            case "delete user":
                return actor.delete_user(self.stream)
        raise AssertionError(self.kind)


names = st.none() | st.sampled_from(["a", "é'\\\"", "x" * 30])
counts = st.integers(0, 2**40)
usages = st.fixed_dictionaries(
    {
        **dict.fromkeys(("response_id", "model", "agent", "user_id", "trace_id", "span_id"), names),
        **dict.fromkeys(("requests", "input_tokens", "output_tokens", "total_tokens"), counts),
        "run_id": st.sampled_from(["r1", "r2"]),
        "user_message_id": st.none() | counts,
        "input_tokens_details": st.just('{"cached_tokens":1}'),
        "output_tokens_details": st.just("{}"),
    }
)
changes = st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3)
OF_SESSIONS: dict[str, st.SearchStrategy[Any]] = {
    "set": changes,
    "delete": st.none(),
    "clear": st.none(),
    "claim": st.sampled_from(USERS),
    "add": st.none(),
    "note": st.none(),
    "use": usages,
}
OF_USERS: dict[str, st.SearchStrategy[Any]] = {
    "set user": changes,
    "delete of user": st.none() | st.lists(st.sampled_from(KEYS), max_size=2),
    "delete user": st.none(),
}
steps = st.one_of(
    *(
        st.builds(Step, st.just(kind), st.sampled_from(streams), argument)
        for kinds, streams in ((OF_SESSIONS, SESSIONS), (OF_USERS, USERS))
        for kind, argument in kinds.items()
    )
)


# --- The rows by plain Python -------------------------------------------------------------------


def metadata_of(events: Iterable[RecordedEvent]) -> Rows:
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for event in events:
        if event.stream_type != "session" or event.type in ("noted", USAGE_RECORDED):
            continue
        for name, value, *respelled in event.data.get("changes", ()):
            key = (event.stream_id, name)
            since = found[key][2] if key in found else event.recorded_at
            found.pop(key, None)
            if value is not None:
                found[key] = (value, (respelled or [value])[0], since, event.recorded_at)
    return in_order((*key, *row) for key, row in found.items())


def users_of(events: Iterable[RecordedEvent]) -> Rows:
    found: dict[str, tuple[Any, ...]] = {}
    for event in events:
        if event.stream_type != "user" or event.type not in USER_EVENTS:
            continue
        since = found[event.stream_id][1] if event.stream_id in found else event.recorded_at
        found.pop(event.stream_id, None)
        if event.type != "user_deleted":
            found[event.stream_id] = (event.data.get("metadata"), since, event.recorded_at)
    return in_order((key, *row) for key, row in found.items())


def usage_of(events: Iterable[RecordedEvent]) -> Rows:
    columns = usage_projection(MetaData()).table.columns.keys()
    return in_order(
        tuple(
            {
                **event.data,
                "id": int(event.position),
                "session_id": event.stream_id,
                "created_at": event.recorded_at,
            }[name]
            for name in columns
        )
        for event in events
        if event.type == USAGE_RECORDED
    )


def in_order(rows: Iterable[Any]) -> Rows:
    return sorted((tuple(row) for row in rows), key=repr)


# --- All ways to the rows -----------------------------------------------------------------------


@dataclass
class Case:
    """A built-in projection, a copy of it that is asynchronous, and its rows by plain Python."""

    inline: Projection
    copy: Projection
    fold: Callable[[Iterable[RecordedEvent]], Rows]
    followers: list[Follower] = field(default_factory=list[Follower])

    async def check(self, store: MetadataStore, log: list[RecordedEvent]) -> None:
        """Any way leads to the same rows."""
        name, expected = self.inline.name, self.fold(log)
        assert await select_rows(store, self.inline) == expected, "inline"
        assert await select_rows(store, self.copy) == expected, "caught up"
        for projection in (self.inline, self.copy):
            await store.rebuild(projection.name)
            assert await select_rows(store, projection) == expected, "rebuilt"
        for end in (log[len(log) // 2].position, log[-1].position) if log else ():
            past = [event for event in log if event.position <= end]
            replayed = await store.replay(name, until=end)
            assert in_order(row.values() for row in replayed) == self.fold(past), "replayed"
        replayed = await store.replay(name)
        assert in_order(row.values() for row in replayed) == expected, "replayed to the end"


async def select_rows(store: MetadataStore, projection: Projection) -> Rows:
    return in_order(await store.log.database.read(select(*projection.table.columns)))


def cases_of(store: MetadataStore) -> list[Case]:
    tables, metadata = store.log.database.tables, MetaData()
    assert tables.usage is not None
    prefix = tables.names.sessions_table.removesuffix("sessions")
    made = [
        (tables.session_metadata, metadata_projection, metadata_of),
        (tables.users, users_projection, users_of),
        (tables.usage, usage_projection, usage_of),
    ]
    return [
        Case(inline, replace(make(metadata, f"{prefix}{inline.name}_copy"), name=f"copy_{n}"), fold)
        for n, (inline, make, fold) in enumerate(made)
    ]


async def run_program(store: MetadataStore, batches: list[list[Step]], sizes: list[int]) -> None:
    """Carry it out batch by batch, and catch up in batches of other sizes meanwhile."""
    cases = cases_of(store)
    for case in cases:
        store.register(case.copy)
    await store.create_tables()
    for case in cases:
        case.followers = [await follower_of(store, case.copy.name, size) for size in sizes]
    for n, batch in enumerate(batches):
        await together(store, *(step.command() for step in batch))
        for case in cases:
            await catch_up(case.followers[n % len(sizes)])
    await together(store, *(step.command() for step in batches[0]))
    await asyncio.gather(*(catch_up(case.followers[-1]) for case in cases))
    log = await log_of(store)
    for case in cases:
        await case.check(store, log)
        assert await store.parked_streams(case.copy.name) == []
    assert await verify_projection(store) == []
    await store.close()


async def catch_up(follower: Follower) -> None:
    async with follower.lease.held() as claim:
        assert claim
        await follower.catch_up(claim)


def test_every_way_leads_to_the_same_rows(backend: Backend) -> None:
    with running(backend, structured_metadata=True) as (runner, empty_store):

        @settings(FEW_EXAMPLES, max_examples=max(5, FEW_EXAMPLES.max_examples // 2))
        @given(
            batches=st.lists(st.lists(steps, min_size=1, max_size=6), min_size=1, max_size=8),
            sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
        )
        def check(batches: list[list[Step]], sizes: list[int]) -> None:
            runner.run(run_program(empty_store(), batches, sizes))

        check()
