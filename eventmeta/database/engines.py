"""The engines behind ``from_url``, which the sessions of a thread share."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, cast

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool

from eventmeta.dialects.connections import close_with, keep_inherited
from eventmeta.dialects.factory import make_engine, read_url

ENGINES_KEPT = 32
"""How many engines a thread keeps: the ones used last. Others live only while they are in use."""


class _Engines(threading.local):
    """The engines of a thread. They end with the thread unless something else uses them."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, AsyncEngine] = OrderedDict()


_engines = _Engines()


def shared_engine(url: str | URL, engine_kwargs: Mapping[str, Any] | None) -> AsyncEngine:
    """Return the engine for ``url``: one per process, thread and set of arguments.

    Engines of in-memory databases are not shared, as each is a database of its own. An unused
    engine is closed some time after its thread has ended, or after the thread has asked for
    `ENGINES_KEPT` others.

    Raises:
        InvalidInput: The URL cannot be read, or SQLAlchemy does not take ``engine_kwargs``.
        MissingExtra: The driver is not installed.
        UnsupportedEngine: There is no dialect for the database or the driver.
    """
    arguments = dict(engine_kwargs or {})
    key = (read_url(url).render_as_string(hide_password=False), _frozen(arguments))
    kept = _engines.kept
    engine = kept.pop(key, None)
    if engine is None:
        engine = make_engine(url, arguments)
        if isinstance(engine.pool, StaticPool):
            return engine
        close_with(engine)
    kept[key] = engine
    while len(kept) > ENGINES_KEPT:
        kept.popitem(last=False)
    return engine


class _Same:
    """A stand-in for an argument without a hash, which equals only itself."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


def _frozen(value: object) -> Hashable:
    """Return a key for an argument. The key does not change if the app changes the argument."""
    if isinstance(value, dict):
        pairs = cast("dict[Hashable, object]", value).items()
        return dict, frozenset((name, _frozen(each)) for name, each in pairs)
    if isinstance(value, list | tuple):
        kind: type = list if isinstance(value, list) else tuple
        return kind, tuple(map(_frozen, cast("list[object]", value)))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _forget() -> None:
    """Drop the engines in a forked process, as they belong to its parent."""
    for engine in _engines.kept.values():
        keep_inherited(engine)
    _engines.kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
