"""A read model in plain Python: the words in the metadata of each session, for searching."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, MetaData, String, Table, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta import MetadataStore
from projections import METADATA_EVENTS, AppliedProjection, Event
from projections.types import SessionId

words = Table(
    "session_words",
    MetaData(),
    Column("word", String(100), primary_key=True),
    Column("session_id", SessionId, primary_key=True),
    Column("key", String(255), primary_key=True),
)


async def apply(
    connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
) -> None:
    """Forget the words of each changed value, and note those of the new one."""
    (table,) = tables
    for event in events:
        for key, text, *_ in event.data["changes"]:
            this = (table.c.session_id == event.stream_id, table.c.key == key)
            await connection.execute(delete(table).where(*this))
            found = {"session_id": event.stream_id, "key": key}
            rows = [{"word": word, **found} for word in words_of(text)]
            if rows:
                await connection.execute(insert(table), rows)


def words_of(text: str | None) -> list[str]:
    value = "" if text is None else json.loads(text)
    found = re.findall(r"\w+", value if isinstance(value, str) else json.dumps(value))
    return sorted({word.lower()[:100] for word in found})


full_text = AppliedProjection(
    name="full_text",
    version=1,
    stream_type="session",
    event_types=METADATA_EVENTS,
    tables=(words,),
    apply=apply,
)


async def search(store: MetadataStore, *wanted: str) -> list[str]:
    """The sessions in whose metadata all of the words are."""
    async with store.engine.connect() as connection:
        rows: Any = await connection.execute(
            select(words.c.session_id)
            .where(words.c.word.in_([word.lower() for word in wanted]))
            .group_by(words.c.session_id)
            .having(func.count(words.c.word.distinct()) == len(wanted))
            .order_by(words.c.session_id)
        )
        return [session_id for (session_id,) in rows]


async def main() -> None:
    async with MetadataStore.from_url("sqlite+aiosqlite://") as store:
        store.register(full_text)
        await store.create_tables()
        async with store.projector():  # follows the log in the background
            await store.session("a").set_metadata({"title": "The Rhine in Basel"})
            event = await store.session("b").set_metadata({"title": "Basel by night", "n": 1})
            assert event is not None
            await store.wait_for(event.position, "full_text")
            print(await search(store, "basel"))
            print(await search(store, "Basel", "night"))


if __name__ == "__main__":
    asyncio.run(main())
