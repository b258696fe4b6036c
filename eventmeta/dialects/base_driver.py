"""Running the statements of a database: around SQLAlchemy, or through it if the app listens."""

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
    """The transactions of one kind of database, behind one engine."""

    locks_whole_database: ClassVar[bool] = False
    """Whether a writer blocks the writers to all other sessions."""

    _checked_options: Mapping[str, Any] | None = None

    @property
    def is_watched(self) -> bool:
        """Return whether the app listens to statements, which then go through SQLAlchemy."""
        return is_watched(self.engine.sync_engine)

    @property
    def runs_code_of_the_app(self) -> bool:
        """Return whether a transaction calls functions of the app, for the transaction's caller."""
        return runs_code_of_the_app(self.engine.sync_engine)

    def check_options(self) -> None:
        """Raise if the engine now puts tables into another schema than when the store was opened.

        Raises:
            UnsupportedEngine: The schema has changed.
        """
        options = self.engine.sync_engine.get_execution_options()
        if options is self._checked_options:  # changed options are a new object
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
        """Raise if a connection puts tables into another schema than the store does.

        Raises:
            InvalidInput: The schemas differ.
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
        """Run ``program`` as a transaction of SQLAlchemy's, whose events the app receives."""
        async with self.transaction() as connection:
            return await run(program, partial(self.execute_on, connection))

    async def _read_through(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """Run ``queries`` in a transaction of SQLAlchemy's, whose events the app receives."""
        async with self.transaction() as connection:
            return [await self.execute_on(connection, query) for query in queries]

    async def execute_on(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        """Run ``query`` on a connection of SQLAlchemy's, with its events, and return the rows."""
        return await execute_query(connection, query)

    @abstractmethod
    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        """Return the rows of each query, run in order on one connection, without a transaction."""

    async def scan(self, query: Query) -> Sequence[Row]:
        """Return the rows of a query that reads the whole log."""
        (rows,) = await self.read([query])
        return rows

    @abstractmethod
    async def write(self, program: Program[T], *, single: bool = False) -> T:
        """Run ``program`` as a transaction of its own.

        Args:
            program: The transaction's statements.
            single: Whether the program is one statement, which is a transaction by itself.
        """

    async def fold(self, program: Program[T]) -> T:
        return await self.write(program)

    @abstractmethod
    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        """Run ``program`` inside the caller's transaction; if it fails, it has changed nothing."""

    async def first_connection(self) -> None:
        """Connect once, so that the kind of server is known."""
        async with self.own_engine.connect():
            pass

    # --- Errors ---------------------------------------------------------------------------------

    @abstractmethod
    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        """Return the meaning of an error of the driver, and its code."""

    def rule_of(self, error: BaseException) -> Rule:
        """Return the rule of the database that ``error`` reports."""
        return Rule()

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection on which ``error`` occurred is of no further use."""
        return self.diagnose(error)[0] in (Failure.DISCONNECTED, Failure.TIMED_OUT)
