"""MySQL and MariaDB at work, through the cursors of asyncmy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.database_errors import DatabaseFailure
from eventmeta.dialects.base import LOCK_TIMEOUT_MS
from eventmeta.dialects.failure import Failure
from eventmeta.dialects.mysql.statements import MySQLStatements
from eventmeta.dialects.pool import configure, lend
from eventmeta.dialects.statement import Program, Query, Row, T, run
from eventmeta.settle import settle


class MySQL(MySQLStatements):
    """InnoDB. Positions come from a counter row, locked from the draw to the commit."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._max_packet = 0
        configure(engine, self._prepare_connection, loop_bound=True)

    def _prepare_connection(self, dbapi_connection: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"SET NAMES utf8mb4 COLLATE {self.collation}")
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_MS // 1000}")
        cursor.execute("SELECT @@max_allowed_packet")
        (self._max_packet,) = cursor.fetchone()
        cursor.close()

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        async def work(connection: Any) -> list[Sequence[Row]]:
            rows = [await self._execute(connection, query) for query in queries]
            await connection.rollback()  # the server has begun a transaction unless told not to
            return rows

        return await lend(self.engine, work, self.is_lost)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        return await self._transact(program)

    async def fold(self, program: Program[T]) -> T:
        """INSERT from the SELECT of another table would lock what it reads, and its gaps."""
        return await self._transact(program, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    async def _transact(self, program: Program[T], *before: str) -> T:
        async def work(connection: Any) -> T:
            # Said to the server, for the engine may be in autocommit mode.
            for statement in (*before, "START TRANSACTION"):
                await connection.query(statement)
            result = await run(program, partial(self._execute, connection))
            await connection.commit()
            return result

        return await lend(self.engine, work, self.is_lost)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with self.savepoint(connection):
                lent = await connection.get_raw_connection()
                return await run(program, partial(self._execute, lent.driver_connection))

        return await settle(work())

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        savepoint = await connection.begin_nested()
        try:
            yield
        except BaseException as error:
            # The victim of a deadlock has lost its whole transaction, savepoints included. To
            # go on in it must fail, or the caller would commit only what comes later.
            whole = self.diagnose(error)[1] == _DEADLOCK and connection.get_transaction()
            if whole or savepoint.is_active:
                await (whole or savepoint).rollback()
            raise
        await savepoint.commit()

    async def _execute(self, connection: Any, query: Query) -> Sequence[Row]:
        self._check_packet(query)
        async with connection.cursor() as cursor:
            await cursor.execute(query.statement.sql, query.values)
            return query.statement.decode(await cursor.fetchall()) if cursor.description else ()

    def _check_packet(self, query: Query) -> None:
        """Refuse here what the server would answer by dropping the connection."""
        texts = [value for value in query.values if isinstance(value, str)]
        if 8 * sum(map(len, texts)) < self._max_packet:
            return
        escapes = sum(text.count(mark) for text in texts for mark in _ESCAPED)
        size = len(query.statement.sql) + sum(len(text.encode()) for text in texts) + escapes
        if size > self._max_packet:
            raise DatabaseFailure(
                f"the statement needs {size:,} bytes, over the server's max_allowed_packet of "
                f"{self._max_packet:,}: raise that, or store less in one call",
                _PACKET_TOO_LARGE,
            )

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        if isinstance(error, DBAPIError):
            if error.connection_invalidated:
                return Failure.DISCONNECTED, _number(error.orig)
            return self.diagnose(error.orig) if error.orig else (Failure.OTHER, None)
        number = _number(error)
        if number is None and isinstance(error, OSError | EOFError):
            return Failure.DISCONNECTED, None
        return _FAILURES.get(number or 0, Failure.OTHER), number


_ESCAPED = "\\\"'\n\r\0\x1a"
_PACKET_TOO_LARGE = 1153
_DEADLOCK = 1213
_FAILURES = {
    _DEADLOCK: Failure.CONFLICT,
    1205: Failure.CONFLICT,  # lock wait timeout
    1020: Failure.CONFLICT,  # record has changed since last read
    1412: Failure.CONFLICT,  # so has the table: a new one has taken its place
    1062: Failure.DUPLICATE,
    **dict.fromkeys((1216, 1217, 1451, 1452), Failure.ORPHANED),
    **dict.fromkeys((1048, 1644, 3819, 4025), Failure.REFUSED),
    **dict.fromkeys((1044, 1142, 1143, 1227, 1370), Failure.FORBIDDEN),
    1146: Failure.TABLE_MISSING,
    1317: Failure.CANCELLED,
    1969: Failure.CANCELLED,
    3024: Failure.CANCELLED,
    1053: Failure.DISCONNECTED,  # server shutdown
    1927: Failure.DISCONNECTED,  # connection was killed
    2003: Failure.DISCONNECTED,
    2006: Failure.DISCONNECTED,
    2013: Failure.DISCONNECTED,
    4031: Failure.DISCONNECTED,  # closed for inactivity
    **dict.fromkeys((3, 20, 28, 1021, 1026, 1030, 1114, 1180), Failure.RESOURCE),  # disk
    **dict.fromkeys((5, 1037, 1038, 1041, 1135, 1206), Failure.RESOURCE),  # memory
    **dict.fromkeys((1290, 1792, 1836), Failure.RESOURCE),  # read-only
    **dict.fromkeys((1034, 1194, 1195, 1712), Failure.RESOURCE),  # damaged
    **dict.fromkeys((1040, 1045, 1049, 1129, 1130, 1203, 1226, 1698), Failure.RESOURCE),
    1047: Failure.RESOURCE,  # a node of a cluster that is not ready
}


def _number(error: BaseException | None) -> int | None:
    first = error.args[0] if error is not None and error.args else None
    return first if isinstance(first, int) and not isinstance(error, OSError) else None
