"""The user on whose behalf a session is used: given when it is opened, or by its first run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventmeta.core.errors import InvalidInput, UserMismatch, UserUnknown
from eventmeta.core.principal import ADMINISTRATOR, Principal
from eventmeta.core.validation import check_flag, check_user_id

if TYPE_CHECKING:
    from agents import RunContextWrapper

UserFrom = Callable[[Any], str]
"""A function that returns the user's id from the context of a run."""


class Binding:
    """The user to whom a session is bound. Once there is a user, the user stays the same."""

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
        """Bind the session to the user of a run.

        Does nothing without a ``wrapper`` or without ``user_from``.

        Raises:
            UserMismatch: The session is bound to another user.
            InvalidIdentifier: The run names no usable user id.
            InvalidInput: ``wrapper`` is not the wrapper of a run.
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
                "this session is bound to another user than the run: open a separate session "
                "object for each user"
            )

    @property
    def access(self) -> Principal:
        """Return the principal: the bound user, or the administrator if there is no user.

        Raises:
            UserUnknown: A run must name the user (``user_from``), and no run has done so yet.
        """
        if self.user_id is not None:
            return Principal(self.user_id, self._claim)
        if self._user_from is not None:
            raise UserUnknown
        return ADMINISTRATOR
