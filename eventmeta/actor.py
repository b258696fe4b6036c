"""Who is writing, and why: carried by the context, so that no call has to repeat it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

from eventmeta.identifiers import check_actor


class Actor(NamedTuple):
    """Who is writing (None: nobody said), and the context recorded with each event."""

    name: str | None
    context: Mapping[str, Any]


_NOBODY = Actor(None, MappingProxyType({}))
_current: ContextVar[Actor] = ContextVar("eventmeta_actor", default=_NOBODY)


@contextmanager
def acting_as(actor: str, /, **context: Any) -> Generator[None]:
    """Attribute every write inside the ``with`` block to ``actor``.

    Follows the task, as context variables do: tasks started inside inherit it. Blocks nest; an
    inner one adds to the context of the outer.

    Args:
        actor: Who acts, such as ``"support:bob"``; at most 255 bytes.
        **context: JSON values recorded with each event, such as ``reason``, ``trace_id``,
            ``correlation_id``, ``causation_id``.

    Raises:
        InvalidIdentifier: The actor is not a usable name.
    """
    outer = _current.get()
    inner = Actor(check_actor(actor), MappingProxyType({**outer.context, **context}))
    token = _current.set(inner)
    try:
        yield
    finally:
        _current.reset(token)


def current_actor() -> Actor:
    """The actor of the innermost ``acting_as`` block."""
    return _current.get()
