"""The current actor: who is writing, and why. Context variables carry it into every call."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

from eventmeta.core.errors import ContextLost
from eventmeta.core.validation import check_actor


class Actor(NamedTuple):
    """The actor (None: not given), and the context that is recorded with each event."""

    name: str | None
    context: Mapping[str, Any]


_NOBODY = Actor(None, MappingProxyType({}))
_current: ContextVar[Actor] = ContextVar("eventmeta_actor", default=_NOBODY)


def acting_as(actor: str, /, **context: Any) -> AbstractContextManager[None]:
    """Attribute every write inside the ``with`` block to ``actor``.

    The actor applies to the current task, as context variables do; tasks started inside inherit it.
    Blocks nest; an inner one adds to the context of the outer. The actor is checked at once. The
    block can be entered once. So a function that runs in a thread, such as a synchronous FastAPI
    dependency, can return it, and the endpoint enters it::

        def actor(user: Annotated[str, Depends(current_user)]) -> AbstractContextManager[None]:
            return acting_as(user)


        async def endpoint(actor: Annotated[AbstractContextManager[None], Depends(actor)]) -> None:
            with actor:
                await session.set_metadata({"title": "Refunds"})

    Args:
        actor: Who acts, such as ``"support:bob"``; at most 255 bytes.
        **context: JSON values recorded with each event, such as ``reason``, ``trace_id``,
            ``correlation_id``, ``causation_id``.

    Raises:
        InvalidIdentifier: The actor is not a usable name.
        ContextLost: The block ended in another context than it began in. This happens if a
            synchronous FastAPI dependency has the block around its ``yield``.
    """
    return _acting_as(check_actor(actor), context)


@contextmanager
def _acting_as(actor: str, context: Mapping[str, Any]) -> Generator[None]:
    outer = _current.get()
    token = _current.set(Actor(actor, MappingProxyType({**outer.context, **context})))
    try:
        yield
    except BaseException:
        with suppress(ValueError):  # about the context; the error raised in the block matters more
            _current.reset(token)
        raise
    try:
        _current.reset(token)
    except ValueError:
        raise ContextLost(actor) from None


def current_actor() -> Actor:
    """Return the actor of the innermost ``acting_as`` block."""
    return _current.get()
