"""The errors about projections: the branch of the tree of errors for read models."""

from __future__ import annotations

from collections.abc import Sequence

from eventmeta.core.errors import EventMetaError, InvalidInput

__all__ = [
    "InvalidProjection",
    "LeaseLost",
    "ProjectionBehind",
    "ProjectionError",
    "ProjectionFailed",
    "ProjectionOutdated",
    "RebuildFailed",
    "RebuildUnderWay",
    "UnknownProjection",
]


class InvalidProjection(InvalidInput):
    """A projection cannot be registered, or cannot be used in this way."""


class UnknownProjection(InvalidInput):
    """No projection of this name is registered.

    Attributes:
        name: The name as given.
        known: The names of the registered projections.
    """

    def __init__(self, name: object, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"there is no projection {name!r} here: register() it first; known are "
            f"{', '.join(known)}"
        )


class ProjectionError(EventMetaError):
    """A projection could not be brought up to date. Its table is unchanged.

    Attributes:
        projection: The projection's name.
    """

    def __init__(self, projection: str, problem: str) -> None:
        self.projection = projection
        super().__init__(f"projection {projection!r} {problem}")


class ProjectionFailed(ProjectionError):
    """A projection in plain Python raised an error; the transaction was undone.

    If the projection is inline, the append was undone. Otherwise the stream of the event is parked.
    A `CancelledError` counts as an error if the task itself was not cancelled.
    """


class ProjectionBehind(ProjectionError, TimeoutError):
    """A projection did not reach a position in time."""


class ProjectionOutdated(ProjectionError):
    """The table was built by another version of the projection than this process has."""


class RebuildFailed(ProjectionError):
    """A table could not be rebuilt; the old table still serves."""


class RebuildUnderWay(RebuildFailed):
    """Another process rebuilds the table at present; the old table still serves."""


class LeaseLost(ProjectionError):
    """Another process has taken over this one's work; nothing was changed twice."""
