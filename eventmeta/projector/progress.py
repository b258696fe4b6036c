"""The progress and the result of a rebuild."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RebuildProgress:
    """The progress of a rebuild.

    Attributes:
        projection: The name of the projection.
        stage: ``"fill"``, ``"catch up"``, ``"compare"`` or ``"swap"``, in this order.
        done: How much of ``total`` is done in this stage.
        total: The number of streams to fill, or the position to reach.
    """

    projection: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Rebuilt:
    """The result of a rebuild.

    Attributes:
        projection: The name of the projection.
        version: The version of the projection.
        position: The position up to which the log was applied at the swap.
        seconds: How long the rebuild took.
        swap_seconds: How long the swap took; writers may have had to wait for it.
    """

    projection: str
    version: int
    position: int
    seconds: float
    swap_seconds: float


Report = Callable[[RebuildProgress], Any]
