"""The conversation: items added, read and popped."""

from __future__ import annotations

from benchmarks.peers.base import Item, Peer
from benchmarks.scenarios.base import Scenario, same, turn

WINDOW = 20


async def _add(peer: Peer, session_id: str, n: int) -> int:
    await peer.add_items(session_id, turn(n))
    return 1


async def _add_holds(peer: Peer, session_id: str, n: int) -> object:
    expected = [item for i in range(max(0, n - WINDOW), n) for item in turn(i)][-WINDOW:]
    return same(peer, await peer.get_items(session_id, WINDOW), expected)


async def _add_history(peer: Peer, session_id: str) -> None:
    """Twice as many items as are read, so that the limit matters."""
    await peer.add_items(session_id, [item for n in range(WINDOW) for item in turn(n)])


async def _get(peer: Peer, session_id: str, n: int) -> int:
    await _add_holds(peer, session_id, WINDOW)
    return 1


async def _get_holds(peer: Peer, session_id: str, n: int) -> object:
    return await _add_holds(peer, session_id, WINDOW)


def _item(n: int) -> Item:
    return turn(n)[1]


async def _items_to_pop(peer: Peer, session_id: str, used: int) -> None:
    """The n-th to be popped is number n."""
    if used:
        await peer.add_items(session_id, [_item(n) for n in reversed(range(used))])


async def _pop(peer: Peer, session_id: str, n: int) -> int:
    same(peer, await peer.pop_item(session_id), _item(n))
    return 1


async def _pop_holds(peer: Peer, session_id: str, n: int) -> object:
    """The next one is last now."""
    return same(peer, await peer.get_items(session_id, 1), [_item(n)])


SCENARIOS = (
    Scenario("add_items", ("add_items", "get_items"), _add, _add_holds),
    Scenario("get_items", ("add_items", "get_items"), _get, _get_holds, _add_history),
    Scenario(
        "pop_item",
        ("add_items", "get_items", "pop_item"),
        _pop,
        _pop_holds,
        supply=_items_to_pop,
    ),
)
