"""What a scenario is: it prepares a session, calls it over and over, and checks it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.peers.base import Item, Peer, Values

T = TypeVar("T")

KEYS = ("owner_id", "title", "prefs")


class WrongData(AssertionError):
    """A peer did not read back what was written: its time means nothing."""


async def nothing(peer: Peer, session_id: str) -> None:
    """A session needs no preparation."""


@dataclass(frozen=True)
class Scenario:
    """One kind of call.

    Attributes:
        name: How the command line and the tables call it.
        needs: The operations that a peer must offer.
        call: The n-th timed call on a session: n = 0, 1, 2 …; what it reads is compared. Returns
            how many ``unit`` that was.
        check: Compares what the session holds after n calls, untimed, and returns what it read.
        prepare: Makes a session ready, untimed.
        supply: For calls that use something up. Before each turn, untimed, it puts back what the
            last n calls have used, and n begins at 0 again. One is always left over.
        unit: What is counted.
        most_callers: How many callers there are at most, where each reads what all have made.
    """

    name: str
    needs: tuple[str, ...]
    call: Callable[[Peer, str, int], Awaitable[int]]
    check: Callable[[Peer, str, int], Awaitable[object]]
    prepare: Callable[[Peer, str], Awaitable[None]] = nothing
    supply: Callable[[Peer, str, int], Awaitable[None]] | None = None
    unit: str = "calls/s"
    most_callers: int | None = None


def metadata(session_id: str, n: int) -> Values:
    """Three values: one that stays, one that changes, one with a structure."""
    return {
        "owner_id": f"user-{session_id}",
        "title": title(n),
        "prefs": {"theme": "dark", "tags": ["work", "später"], "n": n},
    }


def title(n: int) -> str:
    """The value that changes."""
    return f"A talk about the number {n}"


def turn(n: int) -> list[Item]:
    """A question and its answer."""
    return [
        {"role": "user", "content": f"What comes after {n}?"},
        {"role": "assistant", "content": f"After {n} comes {n + 1}, and that is only the start."},
    ]


def same(peer: Peer, found: T, expected: object) -> T:
    """What was found.

    Raises:
        WrongData: It is not what was expected.
    """
    if found != expected:
        raise WrongData(f"{peer.name} read {found!r}, where {expected!r} was written")
    return found


def digest(data: object) -> str:
    """A hash by which two runs can tell whether the same was read back."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
