"""Processes that are killed at any moment: every acknowledged event is applied exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from eventmeta import MetadataStore, verify_projection
from tests.conftest import LONG_VARIABLE
from tests.support.backends import Backend
from tests.support.processes import TIMEOUT
from tests.support.rebuilding import (
    ASYNC,
    TRACED,
    applied_in_order,
    async_metadata,
    end,
    select_rows,
    start,
    trace,
)

SECONDS = 60.0 if LONG_VARIABLE in os.environ else 3.0
LEASE_MS = 500

WRITE = """
import asyncio, os, random, sys
from eventmeta import MetadataStore, NewEvent

async def main(url, name, seed):
    choose = random.Random(seed)
    store = MetadataStore.from_url(url)

    async def write(own):
        while True:
            session = store.session(f"s{choose.randrange(12)}")
            keys = [f"k{choose.randrange(4)}", f"{name}.{own}"]
            if choose.random() < 0.2:
                await session.delete_metadata(keys)
            else:
                await session.set_metadata({key: choose.random() for key in keys})
            event = await store.append(session.session_id, NewEvent("noted"))
            os.write(1, b"%d\\n" % event.position)  # at once, or not at all
            await asyncio.sleep(0.004)

    await asyncio.gather(*(write(own) for own in range(3)))

asyncio.run(main(*sys.argv[1:]))
"""

PROJECT = """
import asyncio, sys
from dataclasses import replace
from eventmeta import MetadataStore
from eventmeta.projector import checkpoints
from tests.support.rebuilding import append_trace, async_metadata, trace

async def apply(connection, events, tables):
    # So that the end comes here as a rule.
    await asyncio.sleep(0.02)
    await append_trace(connection, events, tables)

async def main(url, lease):
    checkpoints.LEASE_MS = int(lease)
    store = MetadataStore.from_url(url)
    store.register(async_metadata())
    store.register(replace(trace(), apply=apply))
    await store.projector(batch_size=100, max_poll=0.02).run()

asyncio.run(main(*sys.argv[1:]))
"""

Start = Callable[[], subprocess.Popen[bytes]]


class Crew:
    """Processes, one of which is killed now and then and started anew."""

    def __init__(self, starts: list[Start]) -> None:
        self.starts = starts
        self.running = [each() for each in starts]
        self.killed = 0

    def replace_one(self, choose: random.Random) -> None:
        n = choose.randrange(len(self.running))
        assert self.running[n].poll() is None
        end([self.running[n]])
        self.running[n] = self.starts[n]()
        self.killed += 1


async def test_killed_writers_and_projectors(
    persistent_url: str, store: MetadataStore, tmp_path: Path
) -> None:
    store.register(async_metadata())
    store.register(trace())
    await store.create_tables()
    acknowledged = tmp_path / "acknowledged"

    def writer(n: int) -> Start:
        return lambda: start(
            WRITE, persistent_url, f"w{n}", str(random.random()), output=acknowledged
        )

    writers = Crew([writer(n) for n in range(4)])
    projectors = Crew([lambda: start(PROJECT, persistent_url, str(LEASE_MS))] * 2)
    choose = random.Random()
    try:
        await until_applied(store)
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            await asyncio.sleep(choose.uniform(0.1, 0.5))
            choose.choice([writers, projectors]).replace_one(choose)
        end(writers.running)
        written = [int(line) for line in acknowledged.read_text().split()]
        position = await caught_up(store, max(written))
    finally:
        end([*writers.running, *projectors.running])
    assert writers.killed + projectors.killed > 2
    await check(store, position, written)


async def until_applied(store: MetadataStore) -> None:
    """Wait until all processes are likely to be at work."""
    async with asyncio.timeout(TIMEOUT):
        while (await store.status()).projections["trace"].checkpoint < 50:
            await asyncio.sleep(0.05)


async def caught_up(store: MetadataStore, last: int) -> int:
    """Wait until all is applied: also what the server still carries out for the killed."""
    while True:
        position = await store.horizon()
        for name in (ASYNC, "trace"):
            await store.wait_for(position, name, timeout=TIMEOUT)
        if last <= position == await store.horizon():
            return position
        await asyncio.sleep(0.05)


async def check(store: MetadataStore, position: int, acknowledged: list[int]) -> None:
    recorded = [event.position async for event in store.events(types=TRACED, until=position)]
    assert len(acknowledged) > 50
    assert set(acknowledged) <= set(recorded), "lost"
    assert sorted(await applied_in_order(store)) == recorded, "skipped"
    assert await select_rows(store, ASYNC) == await select_rows(store, "agent_sessions_metadata")
    assert await verify_projection(store) == []
    assert await store.parked_streams("trace") == await store.parked_streams(ASYNC) == []


@pytest.mark.parametrize("way", ["catch up", "rebuild"])
async def test_an_append_that_is_open_is_not_skipped(
    server_backend: Backend, store: MetadataStore, url: str, way: str
) -> None:
    """Neither is it waited for: what others append meanwhile comes after it."""
    store.register(trace())
    store.register(async_metadata())
    await store.create_tables()
    engine = create_async_engine(url)
    other = MetadataStore(engine)

    async def follow() -> None:
        for name in ("trace", ASYNC):
            await (store.catch_up(name) if way == "catch up" else store.rebuild(name))

    async with store.engine.connect() as connection:
        await store.session("low").set_metadata({"k": 1}, connection=connection)
        passing = [
            asyncio.create_task(other.session(f"high{n}").set_metadata({"k": 1})) for n in range(3)
        ]
        # On MariaDB, they wait for the first.
        await asyncio.wait(passing, timeout=None if server_backend.name == "postgresql" else 0.1)
        await follow()
        assert await applied_in_order(store) == []
        await connection.commit()
    await asyncio.gather(*passing)
    await follow()
    assert len(await applied_in_order(store)) == 4
    assert await select_rows(store, ASYNC) == await select_rows(store, "agent_sessions_metadata")
    await engine.dispose()
