"""Metadata: three keys of a session, now and in the past."""

from __future__ import annotations

from benchmarks.peers.base import Peer, Values
from benchmarks.scenarios.base import KEYS, Scenario, metadata, same, title

VERSIONS = 20
"""How many changes a session has of which the past is read."""


async def _set(peer: Peer, session_id: str, n: int) -> int:
    await peer.set_metadata(session_id, metadata(session_id, n))
    return 1


async def _set_holds(peer: Peer, session_id: str, n: int) -> object:
    found = await peer.get_metadata(session_id, KEYS)
    return same(peer, found, metadata(session_id, n - 1))


async def _set_once(peer: Peer, session_id: str) -> None:
    await _set(peer, session_id, 0)


async def _get(peer: Peer, session_id: str, n: int) -> int:
    await _set_holds(peer, session_id, 1)
    return 1


async def _get_holds(peer: Peer, session_id: str, n: int) -> object:
    return await _set_holds(peer, session_id, 1)


def _numbered(n: int) -> Values:
    """Three keys that only the n-th deletion removes."""
    return {f"{key}-{n}": value for key, value in metadata("any", n).items()}


async def _keys_to_delete(peer: Peer, session_id: str, used: int) -> None:
    if used:
        await peer.set_metadata(
            session_id, {k: v for n in range(used) for k, v in _numbered(n).items()}
        )


async def _delete(peer: Peer, session_id: str, n: int) -> int:
    await peer.delete_metadata(session_id, list(_numbered(n)))
    return 1


async def _delete_holds(peer: Peer, session_id: str, n: int) -> object:
    """The last ones are gone, the next ones are not."""
    expected = {**dict.fromkeys(_numbered(n - 1)), **_numbered(n)}
    return same(peer, await peer.get_metadata(session_id, list(expected)), expected)


async def _set_often(peer: Peer, session_id: str) -> None:
    for n in range(VERSIONS):
        await _set(peer, session_id, n)


async def _history(peer: Peer, session_id: str, n: int) -> int:
    await _history_holds(peer, session_id, n)
    return 1


async def _history_holds(peer: Peer, session_id: str, n: int) -> object:
    found = await peer.history(session_id, "title")
    return same(peer, found, [title(version) for version in range(VERSIONS)])


async def _as_of(peer: Peer, session_id: str, n: int) -> int:
    await _as_of_holds(peer, session_id, n)
    return 1


async def _as_of_holds(peer: Peer, session_id: str, n: int) -> object:
    version = n % VERSIONS
    found = await peer.metadata_as_of(session_id, KEYS, version + 1)
    return same(peer, found, metadata(session_id, version))


SCENARIOS = (
    Scenario("set", ("set_metadata", "get_metadata"), _set, _set_holds),
    Scenario("get", ("set_metadata", "get_metadata"), _get, _get_holds, _set_once),
    Scenario(
        "delete",
        ("set_metadata", "get_metadata", "delete_metadata"),
        _delete,
        _delete_holds,
        supply=_keys_to_delete,
    ),
    Scenario("history", ("set_metadata", "history"), _history, _history_holds, _set_often),
    Scenario("as_of", ("set_metadata", "metadata_as_of"), _as_of, _as_of_holds, _set_often),
)
