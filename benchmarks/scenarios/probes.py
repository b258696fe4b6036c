"""What a fresh process tells: how long an import takes, a first write, how large sessions are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import PEERS, installed, offers
from benchmarks.peers.base import Peer
from benchmarks.scenarios.base import metadata, turn

WRITES = ("set_metadata", "add_items")

_IMPORT = "from time import perf_counter as now; t = now(); {}; print((now() - t) * 1000)"


async def write(peer: Peer, session_id: str) -> None:
    """What the peer is for: metadata if it has any, else items."""
    if offers(type(peer), WRITES[:1]):
        await peer.set_metadata(session_id, metadata(session_id, 0))
    else:
        await peer.add_items(session_id, turn(0))


@dataclass(frozen=True)
class Probe:
    """A number that a process of its own finds; the lower, the better.

    Attributes:
        name: How the command line and the tables call it.
        unit: Of the number.
        supports: Whether it can be asked of a peer on a backend.
        arguments: The interpreter's, for a peer, a backend, a URL and a number of sessions.
    """

    name: str
    unit: str
    supports: Callable[[str, str], bool]
    arguments: Callable[[str, str, str, int], list[str]]


def _imports(peer: str, backend: str) -> bool:
    return PEERS[peer].imports is not None


def _writes(peer: str, backend: str) -> bool:
    found, _ = installed(backend, [peer])
    return any(offers(each, [operation]) for each in found.values() for operation in WRITES)


def _program(name: str) -> Callable[[str, str, str, int], list[str]]:
    def arguments(peer: str, backend: str, url: str, sessions: int) -> list[str]:
        return ["-m", "benchmarks.probe", name, peer, backend, url, str(sessions)]

    return arguments


PROBES = (
    Probe("import", "ms", _imports, lambda peer, *_: ["-c", _IMPORT.format(PEERS[peer].imports)]),
    Probe("first_write", "ms", _writes, _program("first_write")),
    Probe("memory", "kB per 1,000 sessions", _writes, _program("memory")),
)
