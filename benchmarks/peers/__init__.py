"""Those who are compared: each a module, each doing the same work through its own means."""

from __future__ import annotations

from benchmarks.peers.base import Item, Opener, Peer, Values
from benchmarks.peers.eav import SeedEAV
from benchmarks.peers.ours import Ours

__all__ = ["OURS", "PEERS", "Item", "Opener", "Peer", "Values", "peers_for"]

OURS = Ours.name
PEERS = (Ours.name, SeedEAV.name, "bare driver")


def peers_for(backend: str) -> dict[str, Opener]:
    """How to open each peer on ``backend``, in the order in which they take turns.

    A driver that is not installed matters only to who asks for its backend.
    """
    if backend == "sqlite":
        from benchmarks.peers.bare_sqlite import BareSQLite as Bare
    else:
        from benchmarks.peers.bare_postgresql import (  # type: ignore[assignment]
            BarePostgreSQL as Bare,
        )
    return {Ours.name: Ours.open, SeedEAV.name: SeedEAV.open, Bare.name: Bare.open}
