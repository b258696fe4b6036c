"""The log: how many events there are, and how many streams that are parked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import BigInteger, Column, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.growing.base import NAME, Call, count, gather, the_session
from eventmeta import MetadataStore, NewEvent, new_event_id, verify_projection
from projections import AppliedProjection, Event, Projection, metadata_projection

FOLDED, APPLIED = "growth_folded", "growth_applied"


def register(store: MetadataStore) -> None:
    """Have the store keep a projection of each kind."""
    store.register(_renamed())
    store.register(_python())


def _renamed() -> Projection:
    return replace(metadata_projection(MetaData(), FOLDED), name=FOLDED)


def _python() -> AppliedProjection:
    async def apply(
        connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
    ) -> None:
        if any("refuse" in event.data for event in events):
            raise ValueError("it says so")

    return AppliedProjection(
        name=APPLIED,
        version=1,
        stream_type="session",
        event_types=frozenset({"noted"}),
        tables=(Table(APPLIED, MetaData(), Column("position", BigInteger, primary_key=True)),),
        apply=apply,
    )


async def _write(store: MetadataStore, n: int) -> None:
    await gather(the_session(store).set_metadata({"state": number}) for number in range(n))


async def _repeat(store: MetadataStore, n: int) -> None:
    """Each call twice under one event id."""
    ids = [new_event_id() for _ in range(n)]
    for _ in range(2):
        await gather(the_session(store).set_metadata({"again": 1}, event_id=each) for each in ids)


EVENTS: dict[str, Call] = {
    "set_metadata, n times": _write,
    "history()": lambda store, _: the_session(store).history(),
    "history(limit=10)": lambda store, _: the_session(store).history(limit=10),
    "history(key)": lambda store, _: the_session(store).history("state"),
    "get_metadata(as_of=…)": lambda store, n: the_session(store).get_metadata(as_of=n),
    "diff()": lambda store, n: the_session(store).diff(1, n),
    "find_sessions_by_metadata(as_of=…)": lambda store, n: store.find_sessions_by_metadata(
        "state", 1, as_of=n
    ),
    "events()": lambda store, _: count(store.events()),
    "events(types=…)": lambda store, _: count(store.events(types=["noted"])),
    "events(stream=…)": lambda store, _: count(store.events(stream=NAME)),
    "subscribe()": lambda store, n: count(store.subscribe("growth"), n),
    "horizon()": lambda store, _: store.horizon(),
    "status()": lambda store, _: store.status(),
    "catch_up()": lambda store, _: store.catch_up(),
    "replay()": lambda store, _: store.replay("metadata"),
    "replay_into()": lambda store, _: store.replay_into("_growth", "metadata"),
    "rebuild()": lambda store, _: store.rebuild("metadata"),
    "rebuild(own)": lambda store, _: store.rebuild(FOLDED),
    "verify_projection()": lambda store, _: verify_projection(store),
    "under event ids, twice": _repeat,
    "create_tables()": lambda store, _: store.create_tables(),
    "schema_sql()": lambda store, _: store.schema_sql(),
}


async def _note(store: MetadataStore, n: int) -> None:
    await gather(
        store.append(f"s{number}", NewEvent("noted", {"refuse": 1})) for number in range(n)
    )


async def _note_again(store: MetadataStore, n: int) -> None:
    await gather(store.append(f"s{number}", NewEvent("noted")) for number in range(n))


PARKED: dict[str, Call] = {
    "append, n sessions": _note,
    "catch_up(), which parks them": lambda store, _: store.catch_up(APPLIED),
    "append, to parked ones": _note_again,
    "catch_up(), past them": lambda store, _: store.catch_up(APPLIED),
    "parked_streams()": lambda store, _: store.parked_streams(APPLIED),
    "status()": lambda store, _: store.status(),
    "retry()": lambda store, _: store.retry(APPLIED),
}
