"""What is measured: each scenario prepares a session, calls it over and over, and checks it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.peers import Item, Peer, Values

WINDOW = 20
KEYS = ("owner_id", "title", "prefs")


class WrongData(AssertionError):
    """A peer did not read back what was written: its time means nothing."""


@dataclass(frozen=True)
class Scenario:
    """One kind of call.

    Attributes:
        name: How the command line and the tables call it.
        prepare: Makes a session ready, untimed.
        call: The n-th timed call on it: n = 0, 1, 2 …; what it reads is compared.
        check: Compares what the session holds after n calls, untimed.
    """

    name: str
    prepare: Callable[[Peer, str], Awaitable[None]]
    call: Callable[[Peer, str, int], Awaitable[None]]
    check: Callable[[Peer, str, int], Awaitable[None]]


def metadata(session_id: str, n: int) -> Values:
    """Three values: one that stays, one that changes, one with a structure."""
    return {
        "owner_id": f"user-{session_id}",
        "title": f"A talk about the number {n}",
        "prefs": {"theme": "dark", "tags": ["work", "später"], "n": n},
    }


def turn(n: int) -> list[Item]:
    """A question and its answer."""
    return [
        {"role": "user", "content": f"What comes after {n}?"},
        {"role": "assistant", "content": f"After {n} comes {n + 1}, and that is only the start."},
    ]


def _same(peer: Peer, found: object, expected: object) -> None:
    if found != expected:
        raise WrongData(f"{peer.name} read {found!r}, where {expected!r} was written")


async def _nothing(peer: Peer, session_id: str) -> None:
    """A session needs no preparation."""


async def _set(peer: Peer, session_id: str, n: int) -> None:
    await peer.set_metadata(session_id, metadata(session_id, n))


async def _set_holds(peer: Peer, session_id: str, n: int) -> None:
    found = await peer.get_metadata(session_id, KEYS)
    _same(peer, found, metadata(session_id, n - 1))


async def _set_once(peer: Peer, session_id: str) -> None:
    await _set(peer, session_id, 0)


async def _get(peer: Peer, session_id: str, n: int) -> None:
    _same(peer, await peer.get_metadata(session_id, KEYS), metadata(session_id, 0))


async def _add(peer: Peer, session_id: str, n: int) -> None:
    await peer.add_items(session_id, turn(n))


async def _add_holds(peer: Peer, session_id: str, n: int) -> None:
    expected = [item for i in range(n) for item in turn(i)][-WINDOW:]
    _same(peer, await peer.get_items(session_id, WINDOW), expected)


async def _add_history(peer: Peer, session_id: str) -> None:
    """Twice as many items as are read, so that the limit matters."""
    await peer.add_items(session_id, [item for n in range(WINDOW) for item in turn(n)])


async def _get_items(peer: Peer, session_id: str, n: int) -> None:
    await _add_holds(peer, session_id, WINDOW)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("set", _nothing, _set, _set_holds),
        Scenario("get", _set_once, _get, _get),
        Scenario("add_items", _nothing, _add, _add_holds),
        Scenario("get_items", _add_history, _get_items, _get_items),
    )
}
"""``set`` and ``get`` three keys, ``add_items`` two items, ``get_items`` the last twenty."""
