"""What a rebuild tells of itself, while it lasts and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RebuildProgress:
    """How far a rebuild has come.

    Attributes:
        projection: Its name.
        stage: ``"fill"``, ``"catch up"``, ``"compare"`` or ``"swap"``, in this order.
        done: Of ``total``, what is done of the stage.
        total: Streams to fill, or the position to come to.
    """

    projection: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Rebuilt:
    """A table that was built anew.

    Attributes:
        projection: The projection's name.
        version: And its version.
        position: Up to where the log was applied at the swap.
        seconds: How long it took.
        swap_seconds: How long the swap took, for which writers may have had to wait.
    """

    projection: str
    version: int
    position: int
    seconds: float
    swap_seconds: float


Report = Callable[[RebuildProgress], Any]
