"""A process that writes to random sessions and writes down what came of it.

``python -m tests.torture.worker SPEC``, where SPEC is the JSON of a `Spec`. It ends by a signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, cast
from uuid import uuid4

import time_machine
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import DatabaseFailure, MetadataStore, OutcomeUnknown
from tests.torture.journal import Journal

CALLERS = 4
RETRIES = 20


class Spec(TypedDict):
    """What a worker does.

    Attributes:
        url: The database.
        journal: The path of the journal.
        seed: Of its choices.
        name: Unique among all workers; part of the text of each item.
        sessions: In how many sessions it writes.
        cancels: The share of calls that it cancels.
        upstream: The share of calls that go through upstream's class.
        forks: Whether it forks now and then.
        clock: Seconds by which its clock is wrong.
        connect: Statements to run on each new connection.
    """

    url: str
    journal: str
    seed: int
    name: str
    sessions: int
    cancels: float
    upstream: float
    forks: bool
    clock: float
    connect: list[str]


class Worker:
    """The callers of one process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.choose = random.Random(spec["seed"])
        self.journal = Journal(Path(spec["journal"]))
        self.engine = engine_of(spec)
        self.store = MetadataStore(self.engine)
        self.count = 0

    async def run(self) -> None:
        """Write until the process is ended."""
        callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        if self.spec["forks"]:
            callers.append(asyncio.create_task(self._fork()))
        await asyncio.gather(*callers)

    async def _call(self) -> None:
        while True:
            kind = self.choose.choices(["add", "pop", "set", "delete"], [5, 1, 3, 1])[0]
            upstream = self.choose.random() < self.spec["upstream"]
            await self._attempt("upstream" if upstream else kind)
            await asyncio.sleep(self.choose.uniform(0, 0.004))

    async def _attempt(self, kind: str) -> None:
        self.count += 1
        key, session_id = str(uuid4()), f"s{self.choose.randrange(self.spec['sessions'])}"
        texts = [f"{self.spec['name']}:{self.count}:{n}" for n in range(self.choose.randint(1, 3))]
        adds = kind in ("add", "upstream")
        self.journal.write(
            say="begin", key=key, session_id=session_id, kind=kind, texts=texts if adds else []
        )
        begun = time.monotonic()
        said: dict[str, Any] = await self._ending(self._write(kind, key, session_id, texts))
        self.journal.write(say="end", key=key, seconds=time.monotonic() - begun, **said)

    async def _ending(self, write: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """Return how a write ended. One whose outcome is unknown is tried again."""
        cancels = self.choose.random() < self.spec["cancels"]
        limit = self.choose.uniform(0, 0.01) if cancels else None
        error = ""
        for _ in range(RETRIES):
            try:
                async with asyncio.timeout(limit):
                    await write()
                return {"ending": "acknowledged"}
            except TimeoutError:
                return {"ending": "unknown", "error": "cancelled"}
            except OutcomeUnknown as unknown:
                error = str(unknown)
                await asyncio.sleep(0.05)
            except DatabaseFailure as refusal:
                return {"ending": "refused", "error": repr(refusal)}
            except BaseException as other:
                if not self.spec["upstream"] or not isinstance(other, Exception):
                    self.journal.write(say="unexpected", error=repr(other))
                return {"ending": "unknown", "error": repr(other)}
        return {"ending": "unknown", "error": error}

    def _write(
        self, kind: str, key: str, session_id: str, texts: list[str]
    ) -> Callable[[], Awaitable[Any]]:
        session = self.store.session(session_id)
        items: Any = [{"role": "user", "content": text} for text in texts]
        keys = [f"k{self.choose.randrange(4)}", f"{self.spec['name']}"]
        value = self.choose.random()
        match kind:
            case "add":
                return lambda: session.add_items(items, event_id=key)
            case "upstream":
                theirs = SQLAlchemySession(session_id, engine=self.engine)
                return lambda: theirs.add_items(items)
            case "pop":
                return lambda: session.pop_item(event_id=key)
            case "set":
                return lambda: session.set_metadata(dict.fromkeys(keys, value), event_id=key)
            case _:
                return lambda: session.delete_metadata(keys, event_id=key)

    async def _fork(self) -> None:
        """Fork in the midst of it. The child writes by itself, and must end well."""
        while True:
            await asyncio.sleep(self.choose.uniform(0.2, 0.6))
            child = os.fork()
            if not child:
                # The parent's event loop is still said to run in this thread.
                asyncio.events._set_running_loop(None)
                os._exit(asyncio.run(self._in_child()))
            async with asyncio.timeout(20):
                _, status = await asyncio.to_thread(os.waitpid, child, 0)
            if status:
                self.journal.write(say="unexpected", error=f"a child ended with {status}")

    async def _in_child(self) -> int:
        self.store = MetadataStore.from_url(self.spec["url"])
        self.spec["name"] += f"c{os.getpid()}"
        for _ in range(3):
            await self._attempt("add")
        await self.store.close()
        return 0


def engine_of(spec: Spec) -> AsyncEngine:
    """Return an engine whose new connections run the statements of ``spec``."""
    engine = create_async_engine(spec["url"])

    def connected(dbapi: Any, _: Any) -> None:
        cursor = dbapi.cursor()
        for statement in spec["connect"]:
            cursor.execute(statement)
        cursor.close()
        dbapi.commit()  # PostgreSQL takes a setting back with the transaction that made it

    if spec["connect"]:
        event.listen(engine.sync_engine, "connect", connected)
    return engine


def clock_of(spec: Spec) -> AbstractContextManager[Any]:
    """Return what makes the clock of this process wrong by the seconds of ``spec``."""
    if not spec["clock"]:
        return nullcontext()
    return time_machine.travel(datetime.now(UTC) + timedelta(seconds=spec["clock"]), tick=True)


def main() -> None:
    """Write until this process is ended."""
    spec = cast(Spec, json.loads(sys.argv[1]))
    with clock_of(spec):
        asyncio.run(Worker(spec).run())


if __name__ == "__main__":
    main()
