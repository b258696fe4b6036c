"""How a database runs statements: around SQLAlchemy where nobody listens, else through it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.database_errors import UnsupportedEngine
from eventmeta.core.errors import InvalidInput
from eventmeta.dialects.connections import is_watched, runs_code_of_the_app
from eventmeta.dialects.ddl import DDL
from eventmeta.dialects.executing import execute_query
from eventmeta.dialects.failure import Failure, Rule
from eventmeta.dialects.projector import ProjectorSQL
from eventmeta.dialects.statement import Program, Query, Row, T, run, translated_schema


class RunningDialect(DDL, ProjectorSQL):
    """Transactions on one kind of log, behind one engine."""

    locks_whole_database: ClassVar[bool] = False
    """Whether a writer that is kept waiting would be so in any session."""

    _checked_options: Mapping[str, Any] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether the app listens to statements, which then go through SQLAlchemy."""
        return is_watched(self.engine.sync_engine)

    @property
    def runs_code_of_the_app(self) -> bool:
        """Whether a transaction calls functions of the app, for the caller that it is for."""
        return runs_code_of_the_app(self.engine.sync_engine)

    def check_options(self) -> None:
        """Refuse to go on once the engine puts tables elsewhere than when the store was opened.

        Raises:
            UnsupportedEngine: It does.
        """
        options = self.engine.sync_engine.get_execution_options()
        if options is self._checked_options:  # an engine whose options are changed has others
            return
        schema = translated_schema(options)
        if schema == self.schema:
            self._checked_options = options
        else:
            raise UnsupportedEngine(
                f"the engine's schema_translate_map was changed, from the schema {self.schema!r} "
                f"to {schema!r}: open a store for each, on engine.execution_options(…)"
            )

    def check_connection(self, connection: AsyncConnection) -> None:
        """Refuse a connection on which tables are in another schema than the store's.

        Raises:
            InvalidInput: It is so.
        """
        assert connection.sync_connection is not None
        schema = translated_schema(connection.sync_connection.get_execution_options())
        if schema != self.schema:
            raise InvalidInput(
                f"`connection` translates the schema to {schema!r}, the store's engine to "
                f"{self.schema!r}: open the store on an engine with the options of the connection, "
                "engine.execution_options(schema_translate_map=…)"
            )

    async def _through(self, program: Program[T]) -> T:
        """Run ``program`` as a transaction whose events the app hears of."""
        async with self.transaction() as connection:
            return await run(program, partial(self.execute_on, connection))

    async def _read_through(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """Run ``queries`` in a transaction whose events the app hears of."""
        async with self.transaction() as connection:
            return [await self.execute_on(connection, query) for query in queries]

    async def execute_on(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        """Run ``query`` on a connection of SQLAlchemy's, in its events, and return its rows."""
        return await execute_query(connection, query)

    @abstractmethod
    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """The rows of each query. One connection, one query after the other, no transaction."""

    async def scan(self, query: Query) -> Sequence[Row]:
        """The rows of a query that goes through the whole log."""
        (rows,) = await self.read([query])
        return rows

    @abstractmethod
    async def write(self, program: Program[T], *, single: bool = False) -> T:
        """Run ``program`` as a transaction of its own.

        Args:
            program: What to do.
            single: The program is one statement, which is a transaction by itself.
        """

    async def fold(self, program: Program[T]) -> T:
        return await self.write(program)

    @abstractmethod
    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        """Run ``program`` inside the caller's transaction; if it fails, it has changed nothing."""

    async def first_connection(self) -> None:
        """Connect once, so that it is known what server this is."""
        async with self.own_engine.connect():
            pass

    # --- Errors ---------------------------------------------------------------------------------

    @abstractmethod
    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        """What an error of the driver means, and its code."""

    def rule_of(self, error: BaseException) -> Rule:
        """Return which rule of the database ``error`` tells of."""
        return Rule()

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection on which ``error`` came up is of no further use."""
        return self.diagnose(error)[0] in (Failure.DISCONNECTED, Failure.TIMED_OUT)
