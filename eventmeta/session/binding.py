"""On whose behalf a session is used: said when it is opened, or by the run that uses it first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventmeta.core.errors import InvalidInput, UserMismatch, UserUnknown
from eventmeta.core.principal import ADMINISTRATOR, Principal
from eventmeta.core.validation import check_flag, check_user_id

if TYPE_CHECKING:
    from agents import RunContextWrapper

UserFrom = Callable[[Any], str]
"""Finds the id of the user in the context of a run."""


class Binding:
    """The user of a session; once there is one, it stays the same."""

    def __init__(self, user_id: str | None, *, claim: bool, user_from: UserFrom | None) -> None:
        self.user_id = None if user_id is None else check_user_id(user_id)
        check_flag("claim", claim)
        if user_from is not None and not callable(user_from):
            raise InvalidInput(
                f"user_from is a {type(user_from).__name__}: give a function that takes the "
                "context of a run and returns the user's id"
            )
        self._claim = claim
        self._user_from = user_from

    def bind(self, wrapper: RunContextWrapper[Any] | None) -> None:
        """Take the user from a run.

        Raises:
            UserMismatch: The session is bound to another one.
            InvalidIdentifier: The run names none.
        """
        if wrapper is not None and not hasattr(wrapper, "usage"):
            raise InvalidInput(
                f"wrapper is a {type(wrapper).__name__}: give the RunContextWrapper of the run, or "
                "leave it out"
            )
        if self._user_from is None or wrapper is None:
            return
        user_id = check_user_id(self._user_from(wrapper.context))
        if self.user_id is None:
            self.user_id = user_id
        elif self.user_id != user_id:
            raise UserMismatch(
                "this session is bound to another user than that of the run: open a session object "
                "of its own for each user"
            )

    @property
    def access(self) -> Principal:
        """What the user reaches; everything, if the session is opened without a user.

        Raises:
            UserUnknown: A run must say who it is, and none has yet.
        """
        if self.user_id is not None:
            return Principal(self.user_id, self._claim)
        if self._user_from is not None:
            raise UserUnknown
        return ADMINISTRATOR
