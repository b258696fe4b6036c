"""Every argument of every public call, with values of every wrong kind: no error of our inside."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import (
    EventMetaError,
    MetadataSession,
    MetadataStore,
    NewEvent,
    SessionOptions,
    StoreClosed,
    UserStore,
    WriteOptions,
)
from eventmeta.session.arguments import CreationOptions, HandleOptions
from eventmeta.store.user import User

URL = "postgresql+asyncpg://nobody@nowhere.invalid/nothing"

WRONG: dict[str, Any] = {
    "None": None,
    "integer": 7,
    "negative": -1,
    "true": True,
    "fraction": 1.5,
    "nan": float("nan"),
    "text": "x",
    "empty": "",
    "long": "x" * 300,
    "nul": "a\0",
    "bytes": b"x",
    "list": [1],
    "dict": {1: 2},
    "set": {1},
    "naive time": datetime(2026, 1, 1),  # noqa: DTZ001
    "object": object(),
}

USABLE: dict[str, Any] = {
    "session_id": "a",
    "stream_id": "a",
    "user_id": "ann",
    "to_user": "bob",
    "key": "k",
    "keys": ["k"],
    "metadata": {"k": 1},
    "items": [{"role": "user", "content": "Hi"}],
    "event": NewEvent("noted"),
    "name": "reader",
    "projection": "metadata",
    "suffix": "_then",
}

OPTIONS = {
    "WriteOptions": WriteOptions,
    "SessionOptions": SessionOptions,
    "HandleOptions": HandleOptions,
    "CreationOptions": CreationOptions,
}


class Connects(BaseException):
    """The arguments were taken: there is a connection to be made."""


@pytest.fixture
async def unreachable() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(URL, poolclass=NullPool)

    @event.listens_for(engine.sync_engine, "do_connect")
    def connects(*_: Any) -> None:
        raise Connects

    yield engine
    await engine.dispose()


CALLS = [
    (kind, name)
    for kind in (MetadataStore, MetadataSession, UserStore, User)
    for name, member in inspect.getmembers_static(kind)
    if not name.startswith("_") and not isinstance(member, property)
    if name not in ("close", "from_url") and callable(getattr(kind, name))
]


def target(kind: type, engine: AsyncEngine) -> Any:
    store = MetadataStore(engine, structured_metadata=True)
    if kind is MetadataStore:
        return store
    handles: dict[type, Callable[[str], Any]] = {
        MetadataSession: store.session,
        UserStore: store.as_user,
        User: store.user,
    }
    return handles[kind]("a")


def usable(call: Callable[..., Any], engine: AsyncEngine) -> dict[str, Any]:
    """What the call cannot do without."""
    return {
        each.name: engine if each.name == "engine" else USABLE.get(each.name, 1)
        for each in inspect.signature(call).parameters.values()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    }


def with_one_wrong(
    call: Callable[..., Any], engine: AsyncEngine
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is wrong, and all arguments."""
    names: list[str] = []
    for each in inspect.signature(call).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            names += OPTIONS[str(each.annotation).removeprefix("Unpack[")[:-1]].__annotations__
        else:
            names.append(each.name)
    for name in names:
        for kind, wrong in WRONG.items():
            yield f"{name}: {kind}", {**usable(call, engine), name: wrong}


async def finish(result: Any) -> None:
    async with asyncio.timeout(5):
        if inspect.isawaitable(result):
            await result
        elif hasattr(result, "__anext__"):
            await anext(result)


@pytest.mark.parametrize(("kind", "name"), CALLS, ids=[f"{k.__name__}.{n}" for k, n in CALLS])
async def test_a_wrong_argument_meets_an_error_of_ours(
    unreachable: AsyncEngine, kind: type, name: str
) -> None:
    call = getattr(target(kind, unreachable), name)
    inside = []
    for what, given in with_one_wrong(call, unreachable):
        try:
            await finish(call(**given))
        except (EventMetaError, Connects):
            continue
        except BaseException as error:
            inside.append(f"{what}: {type(error).__name__}: {error}")
    assert inside == []


@pytest.mark.parametrize("name", [name for kind, name in CALLS if kind is MetadataStore])
async def test_a_closed_store_says_so(unreachable: AsyncEngine, name: str) -> None:
    store = MetadataStore(unreachable, structured_metadata=True)
    call = getattr(store, name)
    await store.close()
    with pytest.raises(StoreClosed):
        await finish(call(**usable(call, unreachable)))
