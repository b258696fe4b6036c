"""That writes to one session keep their order while some of them are being prepared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import DatabaseFailure, MetadataSession, MetadataStore, NewEvent
from eventmeta.core import canonical_json
from eventmeta.session import stream_metadata
from eventmeta.store import handle
from tests.support.backends import Backend
from tests.support.helpers import user, versions

LARGE: dict[str, Any] = {"large": [[]] * 10_000}


class Encoding:
    """The encoding of what is large, which waits until it is let go."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.begun = threading.Event()

    def changes(self, metadata: Any, max_bytes: int) -> Any:
        self.wait(metadata)
        return canonical_json.encode_changes(metadata, max_bytes)

    def wait(self, given: Any) -> None:
        if "large" in given:
            self.begun.set()
            self.goes_on.wait(20)

    async def reached(self) -> None:
        await asyncio.to_thread(self.begun.wait, 20)


@pytest.fixture
def encoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoding]:
    found = Encoding()
    encoded = handle._encoded

    def event_data(given: Any, max_bytes: int) -> Any:
        found.wait(given)
        return encoded(given, max_bytes)

    monkeypatch.setattr(stream_metadata, "encode_changes", found.changes)
    monkeypatch.setattr(handle, "_encoded", event_data)
    yield found
    found.goes_on.set()


async def wrote(session: MetadataSession) -> list[str]:
    """The keys that the events of the session changed, or the types of its other events."""
    entries = await session.history()
    return [
        next((change[0] for change in entry.event.data.get("changes", ())), entry.event.type)
        for entry in entries
    ]


async def test_none_overtakes_a_large_write_when_one_behind_it_is_cancelled(
    session: MetadataSession, encoding: Encoding
) -> None:
    large = asyncio.create_task(session.set_metadata(LARGE))
    await encoding.reached()
    cancelled = asyncio.create_task(session.set_metadata({"cancelled": LARGE["large"]}))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    last = asyncio.create_task(session.set_metadata({"last": 1}))
    await asyncio.wait([last], timeout=0.1)
    encoding.goes_on.set()
    await asyncio.gather(large, last)
    assert await wrote(session) == ["large", "last"]


@pytest.mark.parametrize("kind", ["set", "append", "items"])
async def test_those_that_waited_for_a_large_write_go_before_the_next_of_its_caller(
    store: MetadataStore, session: MetadataSession, encoding: Encoding, kind: str
) -> None:
    async def large_and_next() -> None:
        await session.set_metadata(LARGE)
        await session.set_metadata({"next": 1})

    first = asyncio.create_task(large_and_next())
    await encoding.reached()
    match kind:
        case "set":
            waiting = asyncio.ensure_future(session.set_metadata({"second": 1}))
        case "append":
            waiting = asyncio.ensure_future(store.append("alpha", NewEvent("second")))
        case _:
            waiting = asyncio.ensure_future(session.add_items([user("second")]))
    await asyncio.sleep(0)
    encoding.goes_on.set()
    await asyncio.gather(first, waiting)
    kept = await wrote(session)
    assert (kept[0], kept[2]) == ("large", "next")


async def test_a_large_event_of_the_app_is_not_overtaken(
    store: MetadataStore, session: MetadataSession, encoding: Encoding
) -> None:
    large = asyncio.create_task(store.append("alpha", NewEvent("large", LARGE)))
    await encoding.reached()
    last = asyncio.create_task(session.set_metadata({"last": 1}))
    await asyncio.wait([last], timeout=0.1)
    encoding.goes_on.set()
    await asyncio.gather(large, last)
    assert await wrote(session) == ["large", "last"]


async def test_a_user_is_not_deleted_before_a_large_write_to_it(
    store: MetadataStore, encoding: Encoding
) -> None:
    ann = store.user("ann")
    await ann.set_metadata({"k": 1})
    large = asyncio.create_task(ann.set_metadata(LARGE))
    await encoding.reached()
    deleted = asyncio.create_task(store.delete_user("ann"))
    await asyncio.wait([deleted], timeout=0.1)
    encoding.goes_on.set()
    events = await asyncio.gather(large, deleted)
    assert [event and event.version for event in events] == [3, 4], "after those of its creation"


async def test_the_wait_for_a_large_write_has_the_deadline_of_its_caller(
    engine: AsyncEngine, session: MetadataSession, encoding: Encoding
) -> None:
    await session.set_metadata({"k": 1})
    large = asyncio.create_task(session.set_metadata(LARGE))
    await encoding.reached()
    impatient = MetadataStore(engine, timeout=0.3).session("alpha")
    begin = time.monotonic()
    with pytest.raises(DatabaseFailure):
        await impatient.set_metadata({"late": 1})
    assert time.monotonic() - begin < 5
    last = asyncio.create_task(session.set_metadata({"last": 1}))
    await asyncio.wait([last], timeout=0.1)
    encoding.goes_on.set()
    await asyncio.gather(large, last)
    assert await wrote(session) == ["k", "large", "last"]


async def test_a_large_write_is_waited_for_only_until_it_is_submitted(
    server_backend: Backend, engine: AsyncEngine, session: MetadataSession
) -> None:
    """So a transaction that holds the session can write to it and end, while others wait for it."""
    await session.set_metadata({"k": 1})
    impatient = MetadataStore(engine, timeout=0.5).session("alpha")
    async with asyncio.timeout(10):
        async with engine.begin() as mine:
            await session.set_metadata({"mine": 1}, connection=mine)
            large = asyncio.create_task(session.set_metadata(LARGE))
            await asyncio.sleep(0.2)
            late = asyncio.create_task(impatient.set_metadata({"late": 1}))
            await session.set_metadata({"mine again": 1}, connection=mine)
            await session.set_metadata({"mine, large": LARGE["large"]}, connection=mine)
            with pytest.raises(DatabaseFailure):
                await late
        await large
    assert await wrote(session) == ["k", "mine", "mine again", "mine, large", "large"]
    assert await versions(session) == [1, 2, 3, 4, 5]
