"""The log itself: appending to it, and reading all of it."""

from __future__ import annotations

import asyncio

from benchmarks.peers.base import Peer, Values
from benchmarks.scenarios.base import KEYS, Scenario, metadata, same

EVENTS = 500
"""How many events a session has when the log is exported or a table rebuilt from it."""


def _event(session_id: str, n: int) -> Values:
    return {**metadata(session_id, n), "session": session_id}


async def _append(peer: Peer, session_id: str, n: int) -> int:
    await peer.append(session_id, _event(session_id, n))
    return 1


async def _append_holds(peer: Peer, session_id: str, n: int) -> object:
    found = [dict(data) for data in await peer.read_stream(session_id)]
    return same(peer, found, [_event(session_id, i) for i in range(n)])


async def _append_often(peer: Peer, session_id: str) -> None:
    for n in range(EVENTS):
        await _append(peer, session_id, n)


async def _export(peer: Peer, session_id: str, n: int) -> int:
    return len(await peer.export())


async def _export_holds(peer: Peer, session_id: str, n: int) -> object:
    found = [dict(data) for data in await peer.export() if data["session"] == session_id]
    return same(peer, found, [_event(session_id, i) for i in range(EVENTS)])


async def _set_often(peer: Peer, session_id: str, first: int = 0) -> None:
    changes = (metadata(session_id, n) for n in range(first, first + EVENTS))
    await asyncio.gather(*(peer.set_metadata(session_id, values) for values in changes))


async def _rebuild(peer: Peer, session_id: str, n: int) -> int:
    await peer.rebuild()
    return EVENTS


async def _rebuilt(peer: Peer, session_id: str, n: int) -> object:
    found = await peer.get_metadata(session_id, KEYS)
    return same(peer, found, metadata(session_id, EVENTS - 1))


async def _write_and_follow(peer: Peer, session_id: str, n: int) -> int:
    await _set_often(peer, session_id, n * EVENTS)
    await _follows(peer, session_id, n + 1)
    return EVENTS


async def _follows(peer: Peer, session_id: str, n: int) -> object:
    return same(peer, await peer.follow(session_id), metadata(session_id, n * EVENTS - 1))


SCENARIOS = (
    Scenario("append", ("append", "read_stream"), _append, _append_holds),
    Scenario(
        "export",
        ("append", "export"),
        _export,
        _export_holds,
        _append_often,
        unit="events/s",
        most_callers=1,
    ),
    Scenario(
        "rebuild",
        ("set_metadata", "get_metadata", "rebuild"),
        _rebuild,
        _rebuilt,
        _set_often,
        unit="events/s",
        most_callers=1,
    ),
    Scenario(
        "catch_up",
        ("set_metadata", "follow"),
        _write_and_follow,
        _follows,
        unit="events/s",
        most_callers=1,
    ),
)
