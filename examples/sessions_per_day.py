"""A read model that the database folds: which sessions were given a tag, day by day."""

from __future__ import annotations

import asyncio

from sqlalchemy import Column, MetaData, String, Table, distinct, false, func, select, true

from eventmeta import MetadataStore
from projections import AnySelect, Events, Projection
from projections.types import SessionId

tags = Table(
    "sessions_per_day",
    MetaData(),
    Column("day", String(10), primary_key=True),
    Column("tag", String(255), primary_key=True),
    Column("session_id", SessionId, primary_key=True),
)


def fold_tags(events: Events) -> AnySelect:
    """A row per day, tag and session, however often it was given."""
    change = events.changes().c
    tag = func.substr(change.value, 2, func.length(change.value) - 2)  # a JSON text, unquoted
    day = events.day_of(change.recorded_at)
    return (
        select(
            day.label("day"),
            tag.label("tag"),
            change.stream_id.label("session_id"),
            true().label("present"),
            false().label("restarted"),
        )
        .where(change.key == "tag", change.value.like('"%"'))
        .distinct()
    )


sessions_per_day = Projection(
    name="sessions_per_day",
    version=1,
    stream_type="session",
    event_types=frozenset({"metadata_set"}),
    table=tags,
    select=fold_tags,
)


async def main() -> None:
    async with MetadataStore.from_url("sqlite+aiosqlite://") as store:
        store.register(sessions_per_day)
        await store.create_tables()
        for number in range(9):
            await store.session(f"chat-{number}").set_metadata(
                {"tag": ["work", "home"][number % 2]}
            )
        await store.catch_up()

        count = func.count(distinct(tags.c.session_id))
        async with store.engine.connect() as connection:
            rows = await connection.execute(
                select(tags.c.tag, count).group_by(tags.c.day, tags.c.tag).order_by(tags.c.tag)
            )
            for tag, sessions in rows:
                print(tag, sessions)


if __name__ == "__main__":
    asyncio.run(main())
