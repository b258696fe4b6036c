"""One engine with its tables: reads and transactions, with failures translated and retried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.deadline import Limits
from eventmeta.core.errors import EventMetaError, StoreClosed
from eventmeta.core.gate import InFlight
from eventmeta.core.per_loop import PerLoop
from eventmeta.core.settle import run_to_completion
from eventmeta.database.opening import Opening
from eventmeta.database.reader import Lookup, Reader, query_for
from eventmeta.database.retry import RetryPolicy
from eventmeta.dialects.factory import dialect_of
from eventmeta.dialects.statement import Program, Query, Row, only
from eventmeta.tables.names import TableNames
from eventmeta.tables.tables import Tables, define_tables

T = TypeVar("T")


class Database:
    """One engine and one set of tables.

    An engine may serve several event loops, one after another; each has its own reader.

    Attributes:
        engine: The engine.
        dialect: The dialect of the engine's database.
        names: The names of the tables.
        tables: The tables.
        limits: How long a call waits unless it is given limits of its own.
        opening: The first connection, and the creation of tables.
        gate: The operations in progress.
    """

    def __init__(
        self, engine: AsyncEngine, names: TableNames, keep_structured: Callable[[], None]
    ) -> None:
        """Make the database object. Nothing is read.

        Args:
            engine: The engine.
            names: The names of the tables.
            keep_structured: Called if the database keeps structured tables and the options do not
                say whether to.
        """
        self.engine = engine
        self.dialect = dialect_of(engine)
        self.names = names
        self.limits = Limits()
        self.gate = InFlight()
        self.retrying = RetryPolicy(self.dialect, self.gate)
        self.replace_tables(define_tables(names, self.dialect.event_keys))
        self.opening = Opening(self, keep_structured)
        self._reader = PerLoop(self._make_reader)
        self._closed = False

    def replace_tables(self, tables: Tables) -> None:
        """Use ``tables`` from now on."""
        self.tables = tables
        self._made: dict[object, Any] = {}
        self.retrying = replace(self.retrying, references=tables.references)

    def once(self, make: Callable[[Database], T]) -> T:
        """Return what ``make`` makes of this database: made once for as long as its tables stay.

        It is kept here, so that it goes with the engine.
        """
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def check_open(self) -> None:
        """Raise an error if the store is closed, or its engine now puts tables elsewhere."""
        if self._closed:
            raise StoreClosed
        self.dialect.check_options()

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def expired(self, limits: Limits, *, unknown: bool = False) -> EventMetaError:
        """Return the error of a call that did not end within ``limits``.

        The call waited for work that it shares with others, which goes on with its connection.

        Args:
            limits: The limits of the caller.
            unknown: A change may have been recorded.
        """
        return self.retrying.failures.expired(limits.timeout, unknown=unknown, was_lent=False)

    def group_read(
        self, read: Query | Lookup, limits: Limits | None = None, /, **request: Any
    ) -> Awaitable[Sequence[Row]]:
        """Return the rows of ``read`` for ``request``. Concurrent callers share a query.

        The query sees every write that was acknowledged before the call.
        """
        self.check_open()
        limits = limits or self.limits
        if self.dialect.is_within:  # reads in the reader may have to wait for this transaction
            return self.fetch(query_for(read, [request]), limits)
        return self._reader.here.fetch(read, limits, **request)

    def _make_reader(self) -> Reader:
        return Reader(
            lambda queries, limits: self.run(lambda: self.dialect.read(queries), limits),
            self.expired,
            self.is_for_one,
        )

    def is_for_one(self) -> bool:
        """Return whether a transaction must serve one caller only, in that caller's context."""
        return self.dialect.runs_code_of_the_app

    async def repeatable(self, program: Callable[[], Program[T]]) -> T:
        """Run a program as a transaction of its own, and retry it. It may run twice."""

        async def attempt() -> T:
            return await self.dialect.write(program())

        return await run_to_completion(
            self.retrying.retried(attempt, commit=True, limits=self.limits.long)
        )

    async def fold(self, program: Callable[[], Program[T]], *, long: bool = False) -> T:
        """Run a program that folds the log, as a transaction of its own. It may run twice.

        Args:
            program: Makes the program.
            long: The program may go through the whole log: see `Limits.long`.
        """
        return await self.repeated(lambda: self.dialect.fold(program()), long=long)

    async def repeated(self, work: Callable[[], Awaitable[T]], *, long: bool = True) -> T:
        """Run a transaction, and retry it. It may run twice; a cancelled caller waits for its end.

        A duplicate key is not retried: the applied events or the projection cause it.
        """
        return await run_to_completion(
            self.retrying.retried(
                work,
                commit=False,
                limits=self.limits.long if long else self.limits,
            )
        )

    async def read(
        self, query: Executable, limits: Limits | None = None, /, **values: Any
    ) -> Sequence[Row]:
        """Return the rows of ``query``, read within ``limits``."""
        statement = self.dialect.compile(query)
        return await self.fetch(statement(**values), limits)

    async def scan(self, query: Executable, **values: Any) -> Sequence[Row]:
        """Return the rows of ``query``, which goes through the whole log."""
        statement = self.dialect.compile(query)
        return await run_to_completion(
            self.run(lambda: self.dialect.scan(statement(**values)), self.limits.long)
        )

    async def fetch(
        self,
        query: Query,
        limits: Limits | None = None,
        connection: AsyncConnection | None = None,
    ) -> Sequence[Row]:
        """Return the rows of one query.

        A cancelled caller waits for the end of the query, so that no connection leaks.

        Args:
            query: The query.
            limits: How long to wait for the rows.
            connection: The caller's connection, in whose transaction to read.
        """
        if connection is not None:
            try:
                return await self.dialect.write_within(connection, only(query))
            except Exception as error:
                raise self.retrying.failures.translated(error) from None
        (rows,) = await run_to_completion(self.run(lambda: self.dialect.read([query]), limits))
        return rows

    async def run(self, work: Callable[[], Awaitable[T]], limits: Limits | None = None) -> T:
        """Run ``work``, which changes nothing, and translate and retry its failures."""
        return await self.retrying.retried(
            work,
            commit=False,
            limits=limits or self.limits,
            changes=False,
        )
