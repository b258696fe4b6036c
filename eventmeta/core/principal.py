"""Who reaches for a session, and which sessions are within reach."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Visibility(enum.Enum):
    """Which sessions a call reaches; all others are as if they were not there."""

    EVERYTHING = "all sessions"
    UNCLAIMED = "the user's own, and those that never had an owner"
    OWN = "the user's own"

    __hash__ = object.__hash__  # of members there is one each; Enum's own takes longer


class Principal(NamedTuple):
    """On whose behalf a call is made.

    Attributes:
        user_id: The user; None for the administrator, who reaches everything.
        claims: A session that never had an owner is within the user's reach, and becomes the
            user's with the first write. Otherwise only the user's own sessions are.
    """

    user_id: str | None = None
    claims: bool = False

    @property
    def reach(self) -> Visibility:
        """Which sessions are within reach."""
        if self.user_id is None:
            return Visibility.EVERYTHING
        return Visibility.UNCLAIMED if self.claims else Visibility.OWN

    def reaches(self, owner: str | None) -> bool:
        """Whether a session of ``owner`` (None: it never had one) is within reach."""
        if self.user_id is None:
            return True
        return self.claims if owner is None else owner == self.user_id

    @property
    def own(self) -> Principal:
        """The same user without the sessions that nobody owns."""
        return Principal(self.user_id)


ADMINISTRATOR = Principal()
