"""Across sessions: finding them by a value, and listing them."""

from __future__ import annotations

from benchmarks.peers.base import Peer, offers
from benchmarks.scenarios.base import Scenario, WrongData, metadata, same, turn

GROUP = 10
"""How many sessions are found, and how many are on a page."""


def _group(session_id: str) -> list[str]:
    return [f"{session_id}-{i}" for i in range(GROUP)]


async def _make_group(peer: Peer, session_id: str) -> None:
    """Sessions with an owner in common."""
    for n, member in enumerate(_group(session_id)):
        await peer.set_metadata(member, metadata(session_id, n))


async def _find(peer: Peer, session_id: str, n: int) -> int:
    await _find_holds(peer, session_id, n)
    return 1


async def _find_holds(peer: Peer, session_id: str, n: int) -> object:
    owner = metadata(session_id, n)["owner_id"]
    found = await peer.find_sessions("owner_id", owner, GROUP)
    return same(peer, sorted(found), _group(session_id))


async def _make_conversations(peer: Peer, session_id: str) -> None:
    """The same; where there are items, lists are by their last change."""
    await _make_group(peer, session_id)
    if offers(type(peer), ("add_items",)):
        for n, member in enumerate(_group(session_id)):
            await peer.add_items(member, turn(n))


async def _list(peer: Peer, session_id: str, n: int) -> int:
    await _list_holds(peer, session_id, n)
    return 1


async def _list_holds(peer: Peer, session_id: str, n: int) -> object:
    """A full page, no session twice, and each one that there is.

    Which are the latest depends on clocks, so their names are not part of what is returned.
    """
    found = await peer.list_sessions(GROUP)
    known = {tail for name in found for tail in [name.rpartition("-")[2]] if tail.isdigit()}
    if len(set(found)) != GROUP or not known or max(map(int, known)) >= GROUP:
        raise WrongData(f"{peer.name} listed {found!r}, where {GROUP} sessions were expected")
    return len(found)


SCENARIOS = (
    Scenario("find", ("set_metadata", "find_sessions"), _find, _find_holds, _make_group),
    Scenario(
        "list",
        ("set_metadata", "list_sessions"),
        _list,
        _list_holds,
        _make_conversations,
        most_callers=16,
    ),
)
