"""The scope of a read: a database as one principal may read it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.core.deadline import Limits
from eventmeta.core.principal import Principal, Visibility
from eventmeta.database.database import Database
from eventmeta.database.reader import Lookup, query_for
from eventmeta.dialects.statement import Row, Statement
from eventmeta.queries.ownership import OWNER, OwnerFilter
from eventmeta.queries.statements import ReadStatements


class Scope(NamedTuple):
    """A database as one principal may read it.

    Attributes:
        database: The database.
        access: The principal on whose behalf the database is read and written.
        limits: How long a call waits; None for the limits of the database.
    """

    database: Database
    access: Principal
    limits: Limits | None = None

    @property
    def reads(self) -> ReadStatements:
        """Return the statements that are limited to what the principal can see."""
        return self.database.once(_reads)[self.access.reach]

    @property
    def own(self) -> Scope:
        """Return the same scope without the sessions that nobody owns."""
        return self._replace(access=self.access.own)

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Return the rows of one of the ``reads``."""
        query = statement(**values, **self.owner)
        return await self.database.group_read(query, self.limits)

    def group_read(
        self, lookup: Lookup, connection: AsyncConnection | None = None, **request: Any
    ) -> Awaitable[Sequence[Row]]:
        """Return the rows of one of the ``reads`` for ``request``. Each row begins with a number.

        Args:
            lookup: The read.
            connection: The caller's connection, in whose transaction to read.
            **request: The parameters of the read.
        """
        if connection is not None:
            query = query_for(lookup, [{**request, **self.owner}])
            return self.database.fetch(query, self.limits, connection)
        return self.database.group_read(lookup, self.limits, **request, **self.owner)

    @property
    def owner(self) -> dict[str, Any]:
        """Return the parameter that every statement takes besides its own: the user, if any."""
        return {} if self.access.user_id is None else {OWNER: self.access.user_id}


def _reads(database: Database) -> dict[Visibility, ReadStatements]:
    tables = database.tables
    return {
        reach: ReadStatements(
            tables, database.dialect, OwnerFilter(tables.streams, tables.events, reach)
        )
        for reach in Visibility
    }
