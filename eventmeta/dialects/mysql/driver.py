"""The MySQL and MariaDB dialect: it runs statements through the cursors of asyncmy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventmeta.core.database_errors import DatabaseFailure
from eventmeta.core.settle import run_to_completion
from eventmeta.dialects.connections import (
    StepAside,
    configure,
    driver_of,
    is_watched_on,
    with_driver_connection,
)
from eventmeta.dialects.executing import transaction_by_hand
from eventmeta.dialects.failure import Failure, RowHeld, Rule
from eventmeta.dialects.mysql.projector import begun
from eventmeta.dialects.mysql.settings import Facts, Settings, find_out
from eventmeta.dialects.mysql.sql import MySQLStatements
from eventmeta.dialects.statement import Program, Query, Row, T, run
from eventmeta.dialects.streams import LOCK_TIMEOUT_MS


class MySQL(MySQLStatements):
    """The dialect of InnoDB. A counter row, locked from draw to commit, gives out the positions."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        sql = engine.dialect

        def prepare(dbapi_connection: Any) -> Facts:
            is_mariadb = bool(getattr(sql, "is_mariadb", False))
            seconds = LOCK_TIMEOUT_MS // 1000
            return find_out(dbapi_connection, is_mariadb=is_mariadb, lock_timeout=seconds)

        configure(engine, prepare, loop_bound=True)

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        if self.is_watched:
            return await self._read_through(queries)

        async def work(connection: Any, facts: Facts) -> list[Sequence[Row]]:
            async with _set_up(connection, facts, facts.reading):
                rows = [await _execute(connection, facts, query) for query in queries]
                await connection.rollback()  # unless in autocommit mode, the server began one
            return rows

        try:
            return await with_driver_connection(self.engine, work, self.is_lost, _has_begun)
        except StepAside:
            return await self._read_through(queries)

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        return await self._transact(program)

    async def fold(self, program: Program[T]) -> T:
        """Run at READ COMMITTED: else INSERT from a SELECT locks the rows and gaps it reads."""
        return await self._transact(program, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    async def _transact(self, program: Program[T], *before: str) -> T:
        if self.is_watched:
            return await self._through(program)

        async def work(connection: Any, facts: Facts) -> T:
            # The settings travel in the message that begins the transaction, and in the one that
            # ends it. Both begin and end it in SQL, because the engine may be in autocommit mode.
            await _say(connection, facts.writing.set_up, *before, "START TRANSACTION")
            own, connection._encoding = connection._encoding, _ENCODING
            try:
                result = await run(program, partial(_execute, connection, facts))
                await _say(connection, _COMMIT, facts.writing.put_back)
            except Exception:
                with suppress(Exception):  # the connection may be lost
                    await _say(connection, "ROLLBACK", facts.writing.put_back)
                raise
            finally:
                connection._encoding = own
            return result

        try:
            return await with_driver_connection(self.engine, work, self.is_lost, _has_begun)
        except StepAside:
            return await self._through(program)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            driver, facts = await driver_of(connection)
            async with _set_up(driver, facts, facts.writing), self.savepoint(connection):
                if is_watched_on(connection):
                    return await run(program, partial(self.execute_on, connection))
                return await run(program, partial(_execute, driver, facts))

        return await run_to_completion(work())

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        """Begin a transaction in SQL, because the engine may be in autocommit mode."""
        async with self.own_engine.connect() as connection:
            driver, facts = await driver_of(connection)
            try:
                async with _set_up(driver, facts, facts.writing), begun(connection):
                    yield connection
            except asyncio.CancelledError:
                await run_to_completion(connection.invalidate())
                raise

    async def execute_on(self, connection: AsyncConnection, query: Query) -> Sequence[Row]:
        _check_packet(query, (await driver_of(connection))[1])
        try:
            return await super().execute_on(connection, query)
        except DBAPIError as error:
            if error.orig is not None and _is_held(error.orig, query):
                raise RowHeld(*error.orig.args) from error
            raise

    @asynccontextmanager
    async def savepoint(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if driver.get_autocommit() and not _has_begun(driver):
            async with transaction_by_hand(connection, "START TRANSACTION"):
                yield
            return
        savepoint = await connection.begin_nested()
        try:
            yield
        except BaseException as error:
            # The victim of a deadlock has lost its whole transaction, savepoints included. Going on
            # in it must fail, or the caller would commit only what comes later.
            whole = self.diagnose(error)[1] == _DEADLOCK and connection.get_transaction()
            if whole or savepoint.is_active:
                await (whole or savepoint).rollback()
            raise
        await savepoint.commit()

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        if isinstance(error, RowHeld):
            return Failure.HELD, _number(error)
        if isinstance(error, DBAPIError):
            if error.connection_invalidated:
                return Failure.DISCONNECTED, _number(error.orig)
            return self.diagnose(error.orig) if error.orig else (Failure.OTHER, None)
        if isinstance(error, PoolTimeout):
            return Failure.NO_CONNECTION_LEFT, None
        number = _number(error)
        if number == _LOST and "read timeout" in str(error):
            return Failure.TIMED_OUT, number
        if number is None and isinstance(error, OSError | EOFError):
            return Failure.DISCONNECTED, None
        return _FAILURES.get(number or 0, Failure.OTHER), number

    def rule_of(self, error: BaseException) -> Rule:
        """Return the rule that the text of ``error`` names; there is no other source."""
        told = _FOREIGN_KEY.search(str(error))
        if told:
            return Rule(told["constraint"], told["table"], told["other"])
        told = _CHECK.search(str(error))
        return Rule(told["constraint"], told["table"]) if told else Rule()


_FOREIGN_KEY = re.compile(
    r"`(?P<table>[^`]+)`, CONSTRAINT `(?P<constraint>[^`]+)` FOREIGN KEY \([^)]*\) "
    r"REFERENCES (?:`[^`]+`\.)?`(?P<other>[^`]+)`"
)
_CHECK = re.compile(
    r"(?:CONSTRAINT|constraint) [`'](?P<constraint>[^`']+)['`] "
    r"(?:failed for `[^`]+`\.`(?P<table>[^`]+)`|is violated)"
)
_ENCODING = "utf8"
_COMMIT = "COMMIT AND NO CHAIN NO RELEASE"
_ESCAPED = "\\\"'\n\r\0\x1a"
_PACKET_TOO_LARGE = 1153
_DEADLOCK = 1213
_LOCK_WAIT = 1205
_LOST = 2013
_FAILURES = {
    _DEADLOCK: Failure.CONFLICT,
    _LOCK_WAIT: Failure.CONFLICT,  # timed out: mostly for the counter, which all wait for
    1020: Failure.CONFLICT,  # record has changed since last read
    1412: Failure.CONFLICT,  # a new table has taken the place of this one
    1615: Failure.CONFLICT,  # a statement has to be prepared again
    3572: Failure.HELD,  # NOWAIT
    1062: Failure.DUPLICATE,
    **dict.fromkeys((1216, 1217, 1451, 1452), Failure.ORPHANED),
    **dict.fromkeys((1048, 1364), Failure.REFUSED),  # NULL, no default
    **dict.fromkeys((3819, 4025, 1369), Failure.REFUSED),  # a check, the condition of a view
    1644: Failure.REFUSED,  # SIGNAL
    **dict.fromkeys((1142, 1143, 1227, 1370), Failure.FORBIDDEN),
    1146: Failure.TABLE_MISSING,
    1054: Failure.TABLE_MISSING,  # a column, which a newer version has added
    1317: Failure.CANCELLED,
    1969: Failure.CANCELLED,
    3024: Failure.CANCELLED,
    1040: Failure.NO_CONNECTION_LEFT,
    1203: Failure.NO_CONNECTION_LEFT,  # for the user
    1226: Failure.NO_CONNECTION_LEFT,  # for the account
    1044: Failure.NOT_LET_IN,  # no access to this database
    1045: Failure.NOT_LET_IN,  # the user, or the password
    1049: Failure.NOT_LET_IN,  # no such database
    1053: Failure.DISCONNECTED,  # server shutdown
    1927: Failure.DISCONNECTED,  # connection was killed
    2003: Failure.DISCONNECTED,
    2006: Failure.DISCONNECTED,
    _LOST: Failure.DISCONNECTED,
    4031: Failure.DISCONNECTED,  # closed for inactivity
    **dict.fromkeys((3, 20, 28, 1021, 1026, 1030, 1114, 1180), Failure.RESOURCE),  # disk
    **dict.fromkeys((5, 1037, 1038, 1041, 1135, 1206), Failure.RESOURCE),  # memory
    **dict.fromkeys((1290, 1792, 1836), Failure.RESOURCE),  # read-only
    **dict.fromkeys((1034, 1194, 1195, 1712), Failure.RESOURCE),  # damaged
    **dict.fromkeys((1129, 1130, 1698), Failure.NOT_LET_IN),  # the host, or the authentication
    1047: Failure.RESOURCE,  # a node of a cluster that is not ready
}


def _number(error: BaseException | None) -> int | None:
    first = error.args[0] if error is not None and error.args else None
    return first if isinstance(first, int) and not isinstance(error, OSError) else None


@asynccontextmanager
async def _set_up(connection: Any, facts: Facts, settings: Settings | None) -> AsyncGenerator[None]:
    """Give the session of the driver's connection the settings that the store needs, for the block.

    If a statement on the connection is cancelled, it must be thrown away.
    """
    if settings is None or facts.is_set_up:
        yield
        return
    await connection.query(settings.set_up)
    own, connection._encoding, facts.is_set_up = connection._encoding, _ENCODING, True
    try:
        yield
    except Exception:
        with suppress(Exception):  # the connection may be lost
            await connection.query(settings.put_back)
        raise
    else:
        await connection.query(settings.put_back)
    finally:
        connection._encoding, facts.is_set_up = own, False


async def _say(connection: Any, *statements: str) -> None:
    """Send ``statements`` as one message, and wait until all of them are done."""
    await connection.query("; ".join(statements))
    for _ in statements[1:]:
        await connection.next_result()


def _has_begun(connection: Any) -> bool:
    return bool(connection.get_transaction_status())


async def _execute(connection: Any, facts: Facts, query: Query) -> Sequence[Row]:
    _check_packet(query, facts)
    async with connection.cursor() as cursor:
        try:
            await cursor.execute(query.statement.sql, query.values)
        except Exception as error:
            if _is_held(error, query):
                raise RowHeld(*error.args) from error
            raise
        rows = await cursor.fetchall() if cursor.description else ()
        query.check_affected(len(rows) if cursor.description else cursor.rowcount)
        return query.statement.decode(rows)


def _is_held(error: BaseException | None, query: Query) -> bool:
    """Return whether a row is locked; MariaDB reports NOWAIT as if it had waited."""
    return _number(error) == _LOCK_WAIT and query.statement.sql.endswith(" NOWAIT")


def _check_packet(query: Query, facts: Facts) -> None:
    """Raise if the statement is too long; the server would drop the connection instead."""
    texts = [value for value in query.values if isinstance(value, str)]
    if 8 * sum(map(len, texts)) < facts.max_packet:
        return
    escapes = sum(text.count(mark) for text in texts for mark in _ESCAPED)
    size = len(query.statement.sql) + sum(len(text.encode()) for text in texts) + escapes
    if size > facts.max_packet:
        raise DatabaseFailure(
            f"the statement needs {size:,} bytes, over the server's max_allowed_packet of "
            f"{facts.max_packet:,}: raise that, or store less in one call",
            _PACKET_TOO_LARGE,
        )
