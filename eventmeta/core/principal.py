"""On whose behalf a call is made, and which sessions that principal can see."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Visibility(enum.Enum):
    """The sessions that a call can see; it treats all others as missing."""

    ALL = "all sessions"
    OWNED_OR_UNOWNED = "the user's own, and those that never had an owner"
    OWNED = "the user's own"

    __hash__ = object.__hash__  # each member exists once; Enum's own hash takes longer


class Principal(NamedTuple):
    """The user, or the administrator, on whose behalf a call is made.

    Attributes:
        user_id: The user; None for the administrator, who can see everything.
        claims: Whether the user can also see sessions that never had an owner. With their first
            write there, the session becomes theirs. If False, the user can see only their own
            sessions.
    """

    user_id: str | None = None
    claims: bool = False

    @property
    def reach(self) -> Visibility:
        """Return which sessions this principal can see."""
        if self.user_id is None:
            return Visibility.ALL
        return Visibility.OWNED_OR_UNOWNED if self.claims else Visibility.OWNED

    def reaches(self, owner: str | None) -> bool:
        """Return whether this principal can see a session of ``owner`` (None: it never had one)."""
        if self.user_id is None:
            return True
        return self.claims if owner is None else owner == self.user_id

    @property
    def own(self) -> Principal:
        """Return the same user, limited to the sessions that the user owns."""
        return Principal(self.user_id)


ADMINISTRATOR = Principal()
