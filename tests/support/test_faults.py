"""The fault injection itself works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.faults import Outcome, cancel_at, cancel_everywhere


class Walk:
    """A call with three suspension points, that notes how far it came."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def __call__(self) -> str:
        self.steps.append("start")
        await asyncio.sleep(0)
        self.steps.append("turn")
        await self.returns_at_once()
        await asyncio.to_thread(self.steps.append, "thread")
        self.steps.append("after thread")
        await asyncio.wait_for(asyncio.sleep(0.001), timeout=5)
        return "done"

    async def returns_at_once(self) -> None:
        """Never suspends, so it is no point."""


async def test_cancel_everywhere_visits_every_suspension_point() -> None:
    walks: list[Walk] = []

    def walk() -> Awaitable[str]:
        walks.append(Walk())
        return walks[-1]()

    outcomes: list[Outcome[str]] = [outcome async for outcome in cancel_everywhere(walk)]
    assert [outcome.cancelled for outcome in outcomes] == [True, True, True, False]
    assert [outcome.reached for outcome in outcomes] == [True, True, True, False]
    assert outcomes[-1].result == "done"
    assert [walk.steps[:2] for walk in walks] == [["start"]] + [["start", "turn"]] * 3
    assert "after thread" not in walks[1].steps
    assert "after thread" in walks[2].steps


async def test_a_late_cancellation_comes_when_the_work_is_done() -> None:
    walk = Walk()
    outcome = await cancel_at(2, walk, late=True)
    assert outcome.cancelled
    assert walk.steps == ["start", "turn", "thread"]


async def test_cancel_at_tells_how_the_call_ended() -> None:
    async def refuses() -> int:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise ValueError("cleaned up") from None
        return 1

    async def ignores() -> int:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return 1

    refused = await cancel_at(1, refuses)
    assert (refused.reached, refused.cancelled) == (True, False)
    assert str(refused.error) == "cleaned up"
    assert await cancel_at(1, ignores) == Outcome(1, True, False, None, 1)
    assert await cancel_at(2, refuses) == Outcome(2, False, False, None, 1)


async def test_cancel_at_does_not_wait_for_ever() -> None:
    async def hangs() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError, match="suspension point 1"):
        await cancel_at(1, hangs, timeout=0.05)


async def test_cancelling_a_database_call_anywhere_leaks_nothing(engine: AsyncEngine) -> None:
    """Cancellation gets through SQLAlchemy's greenlets, and the fixture checks for leaks."""

    async def call() -> int | None:
        async with engine.begin() as connection:
            one: int | None = await connection.scalar(text("SELECT 1"))
        return one

    await call()
    points = [outcome async for outcome in cancel_everywhere(call)]
    assert len(points) > 1
    assert points[-1].result == 1
    assert all(outcome.cancelled for outcome in points[:-1])
