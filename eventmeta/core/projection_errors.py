"""The errors of projections: the branch of the tree of errors that is about read models."""

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
        known: The names of those that are.
    """

    def __init__(self, name: object, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"there is no projection {name!r} here: register() it first; known are "
            f"{', '.join(known)}"
        )


class ProjectionError(EventMetaError):
    """A projection could not be brought up to date. Its table is as it was.

    Attributes:
        projection: Its name.
    """

    def __init__(self, projection: str, problem: str) -> None:
        self.projection = projection
        super().__init__(f"projection {projection!r} {problem}")


class ProjectionFailed(ProjectionError):
    """A projection in plain Python raised an error; what it was part of was undone.

    Inline, that is the append. Else the stream of the event is parked.
    """


class ProjectionBehind(ProjectionError, TimeoutError):
    """A projection did not come to a position in time."""


class ProjectionOutdated(ProjectionError):
    """The table is of another version of the projection than this process has."""


class RebuildFailed(ProjectionError):
    """A table could not be built anew; the old one goes on serving."""


class RebuildUnderWay(RebuildFailed):
    """Another process builds the table anew; the old one goes on serving."""


class LeaseLost(ProjectionError):
    """Another process has taken over what this one worked on; nothing was changed twice."""
