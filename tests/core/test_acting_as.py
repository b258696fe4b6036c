"""`acting_as` where a web framework runs synchronous code in threads, each with its own context."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import anyio
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from eventmeta import ContextLost, InvalidIdentifier, MetadataStore, acting_as


async def actors(store: MetadataStore) -> list[str | None]:
    return [entry.actor for entry in await store.session("alpha").history()]


async def test_what_a_thread_returns_is_entered_by_the_endpoint(store: MetadataStore) -> None:
    """As FastAPI calls a dependency that is `def`."""

    def dependency() -> AbstractContextManager[None]:
        return acting_as("support:bob", reason="ticket 12")

    acting = await anyio.to_thread.run_sync(dependency)
    with acting:
        await store.session("alpha").set_metadata({"k": 1})
    assert await actors(store) == ["support:bob"]


async def test_a_block_around_a_yield_in_a_thread_is_told_what_to_do(store: MetadataStore) -> None:
    """As FastAPI calls a dependency that is `def` with a `yield`: each half in a context."""

    @contextmanager
    def dependency() -> Generator[None]:
        with acting_as("support:bob"):
            yield

    block = dependency()
    await run_in_threadpool(block.__enter__)
    await store.session("alpha").set_metadata({"k": 1})
    with pytest.raises(ContextLost, match=r"return.*acting_as\(…\).*`async def`.*actor=") as caught:
        await run_in_threadpool(block.__exit__, None, None, None)
    assert caught.value.actor == "support:bob"
    assert await actors(store) == [None]


async def test_an_error_in_the_block_is_not_hidden() -> None:
    block = acting_as("support:bob")
    await run_in_threadpool(block.__enter__)
    error = ValueError("mine")
    assert not await run_in_threadpool(block.__exit__, ValueError, error, None)


def test_a_bad_actor_is_refused_where_it_is_said() -> None:
    with pytest.raises(InvalidIdentifier):
        acting_as("")


def test_an_endpoint_in_a_thread_may_write_by_the_event_loop() -> None:
    """Its block goes with what it calls there."""
    store = MetadataStore.from_url("sqlite+aiosqlite://", create_tables=True)

    def endpoint(request: Request) -> JSONResponse:
        with acting_as("support:bob"):
            anyio.from_thread.run(store.session("alpha").set_metadata, {"k": 1})
        found = anyio.from_thread.run(actors, store)
        anyio.from_thread.run(store.close)
        return JSONResponse(found)

    with TestClient(Starlette(routes=[Route("/", endpoint)])) as client:
        assert client.get("/").json() == ["support:bob"]
