"""What is done to the writers, to the server, and to the network between them."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.torture.journal import History
from tests.torture.proxy import Proxy, proxied
from tests.torture.worker import Spec

SQLITE, POSTGRESQL, MARIADB = "sqlite-file", "postgresql", "mariadb"
ALL = (SQLITE, POSTGRESQL, MARIADB)
_ROWS = (("agent_streams", "stream_id"), ("agent_sessions", "session_id"))
PATIENCE = 1.5
"""Seconds after which a write waits too long for a session that is not its own."""


class Workers(ABC):
    """The processes that write."""

    @abstractmethod
    def replace_one(self) -> None:
        """Kill one of them, and start another in its place."""


@dataclass
class Fault:
    """One kind of fault; this one does nothing.

    Attributes:
        backend: The database it is done to.
        engine: An engine on it, for the faults themselves.
        choose: Makes every choice.
    """

    backend: str
    engine: AsyncEngine
    choose: random.Random
    backends: ClassVar[tuple[str, ...]] = ALL

    def prepare_worker(self, spec: Spec) -> None:
        """Change what a new worker does."""

    @asynccontextmanager
    async def reached_by(self, url: str) -> AsyncGenerator[str]:
        """Yield the URL that workers use."""
        yield url

    async def strike(self, workers: Workers) -> None:
        """Do it once."""
        await asyncio.sleep(0.1)

    async def end(self) -> None:
        """Put everything in order."""

    def further_violations(self, history: History) -> Iterator[str]:
        """Yield what is wrong besides what all faults are checked for."""
        yield from ()


class Kills(Fault):
    """Processes die at any moment."""

    async def strike(self, workers: Workers) -> None:
        await asyncio.sleep(self.choose.uniform(0.1, 0.5))
        workers.replace_one()


@dataclass
class Cuts(Fault):
    """Connections break, and the server falls silent for a while."""

    backends: ClassVar[tuple[str, ...]] = (POSTGRESQL, MARIADB)
    proxy: list[Proxy] = field(default_factory=list[Proxy])

    @asynccontextmanager
    async def reached_by(self, url: str) -> AsyncGenerator[str]:
        async with AsyncExitStack() as stack:
            through, proxy = await stack.enter_async_context(proxied(url, self.choose))
            self.proxy = [proxy]
            yield through

    async def strike(self, workers: Workers) -> None:
        await asyncio.sleep(self.choose.uniform(0.05, 0.3))
        if self.choose.random() < 0.2:
            await self.proxy[0].fall_silent(self.choose.uniform(0.1, 0.5))
        self.proxy[0].cut()


class Cancellations(Fault):
    """Callers give up at any moment."""

    def prepare_worker(self, spec: Spec) -> None:
        spec["cancels"] = 0.3


class Clocks(Fault):
    """Each process has another time, up to two days off."""

    def prepare_worker(self, spec: Spec) -> None:
        spec["clock"] = self.choose.uniform(-2e5, 2e5)
        if self.backend == MARIADB:
            spec["connect"] = [f"SET timestamp = UNIX_TIMESTAMP() + {int(spec['clock'])}"]

    async def strike(self, workers: Workers) -> None:
        await asyncio.sleep(self.choose.uniform(0.3, 0.6))
        workers.replace_one()


class Zones(Fault):
    """Each process has another time zone, and upstream's own class writes to the same sessions."""

    def prepare_worker(self, spec: Spec) -> None:
        if self.choose.random() < 0.5:
            spec["upstream"] = 0.3  # in UTC, for what others write is ordered by their clock
            zone = "+00:00"
        else:
            zone = f"{self.choose.choice('+-')}{self.choose.randint(1, 11):02}:00"
        statements = {
            SQLITE: [],
            POSTGRESQL: [f"SET TIME ZONE INTERVAL '{zone}' HOUR TO MINUTE"],
            MARIADB: [f"SET time_zone = '{zone}'"],
        }
        spec["connect"] = statements[self.backend]


@dataclass
class Locks(Fault):
    """Transactions of somebody else hold a session for seconds."""

    held: set[str] = field(default_factory=set[str])

    async def strike(self, workers: Workers) -> None:
        session_id = f"s{self.choose.randrange(3)}"
        self.held.add(session_id)
        seconds = self.choose.uniform(0.5, 3.0)
        async with self.engine.connect() as connection:
            if self.backend == SQLITE:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                seconds /= 4
            else:
                for table, key in (
                    ("agent_streams", "stream_id"),
                    ("agent_sessions", "session_id"),
                ):
                    query = text(f"SELECT 1 FROM {table} WHERE {key} = :key FOR UPDATE")
                    await connection.execute(query, {"key": session_id})
            await asyncio.sleep(seconds)
            await connection.rollback()

    def further_violations(self, history: History) -> Iterator[str]:
        if self.backend == SQLITE:
            return
        for attempt in history.attempts.values():
            if attempt.session_id not in self.held and attempt.seconds > PATIENCE:
                yield f"{attempt.key} waited {attempt.seconds:.1f} s for a session not its own"


class FullDisk(Fault):
    """There is no room left, for a while."""

    _SIGNS: ClassVar[dict[str, Sequence[str]]] = {
        POSTGRESQL: (
            "CREATE TABLE disk (is_full int)",
            "CREATE FUNCTION write_to_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF EXISTS (SELECT FROM disk) THEN RAISE EXCEPTION 'could not extend file'"
            " USING ERRCODE = '53100'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER disk BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION write_to_disk()",
        ),
        MARIADB: (
            "CREATE TABLE disk (is_full int)",
            "CREATE TRIGGER {}_disk BEFORE INSERT ON {} FOR EACH ROW BEGIN IF EXISTS"
            " (SELECT 1 FROM disk) THEN SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021; END IF;"
            " END",
        ),
    }

    async def reach(self) -> None:
        """Make the server say so where there is a row in a table."""
        async with self.engine.begin() as connection:
            for statement in self._SIGNS.get(self.backend, ()):
                tables = ("agent_events", "trace") if "{}" in statement else ("",)
                for table in tables:
                    await connection.exec_driver_sql(statement.replace("{}", table))

    @asynccontextmanager
    async def reached_by(self, url: str) -> AsyncGenerator[str]:
        await self.reach()
        yield url

    def prepare_worker(self, spec: Spec) -> None:
        if self.backend == SQLITE:
            # Less than the database has already is taken for what it has.
            spec["connect"] = [f"PRAGMA max_page_count = {self.choose.choice([1, 10**6, 10**6])}"]

    async def strike(self, workers: Workers) -> None:
        await asyncio.sleep(self.choose.uniform(0.1, 0.4))
        if self.backend == SQLITE:
            workers.replace_one()
            return
        async with self.engine.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO disk VALUES (1)")
        await asyncio.sleep(self.choose.uniform(0.1, 0.3))
        await self.end()

    async def end(self) -> None:
        if self.backend != SQLITE:
            async with self.engine.begin() as connection:
                await connection.exec_driver_sql("DELETE FROM disk")


class Forks(Fault):
    """Processes fork while they write, and the children write too."""

    def prepare_worker(self, spec: Spec) -> None:
        spec["forks"] = True


FAULTS: dict[str, type[Fault]] = {
    "kills": Kills,
    "cuts": Cuts,
    "cancellations": Cancellations,
    "clocks": Clocks,
    "zones": Zones,
    "locks": Locks,
    "full-disk": FullDisk,
    "forks": Forks,
}
