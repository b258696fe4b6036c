"""What a failure of the database or of its driver means to the caller."""

from __future__ import annotations

import asyncio
import errno
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import asyncmy.errors
import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmeta import (
    DatabaseBusy,
    DatabaseUnavailable,
    MetadataSession,
    MetadataStore,
    OutcomeUnknown,
    UnsupportedEngine,
    new_event_id,
)
from eventmeta.database import retry as retrying
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.factory import dialect_of
from eventmeta.dialects.failure import Failure
from tests.support.backends import Backend
from tests.support.helpers import count_transactions, versions

# --- Codes --------------------------------------------------------------------------------------

URLS = {
    "sqlite": "sqlite+aiosqlite://",
    "postgresql": "postgresql+asyncpg://nobody@nowhere.invalid/nothing",
    "mysql": "mysql+asyncmy://nobody@nowhere.invalid/nothing",
}


def sqlite_error(code: int, message: str = "as SQLite says it") -> Exception:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def postgresql_error(code: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": code, "M": "as PostgreSQL says it", "S": "ERROR"})


def mysql_error(code: int) -> asyncmy.errors.OperationalError:
    return asyncmy.errors.OperationalError(code, "as MySQL says it")


def cases(name: str, make: Any, failure: Failure, codes: Sequence[Any]) -> list[Any]:
    return [pytest.param(name, make(code), failure, code, id=f"{name} {code}") for code in codes]


CODES = [
    *cases("sqlite", sqlite_error, Failure.CONFLICT, [5, 6, 17, 261, 517, 262]),
    *cases("sqlite", sqlite_error, Failure.DUPLICATE, [2067, 1555]),
    *cases("sqlite", sqlite_error, Failure.OTHER, [1, 18, 20]),
    *cases("sqlite", sqlite_error, Failure.REFUSED, [19, 275, 787, 1299, 1811, 3091]),
    *cases("sqlite", sqlite_error, Failure.FORBIDDEN, [3, 23]),
    *cases("sqlite", sqlite_error, Failure.RESOURCE, [7, 8, 1032, 10, 778, 11, 13, 26]),
    *cases("postgresql", postgresql_error, Failure.CONFLICT, ["40001", "40P01"]),
    *cases("postgresql", postgresql_error, Failure.DUPLICATE, ["23505"]),
    *cases("postgresql", postgresql_error, Failure.TABLE_MISSING, ["42P01", "42703"]),
    *cases(
        "postgresql",
        postgresql_error,
        Failure.DISCONNECTED,
        ["08000", "08006", "57P01", "57P02", "57P03"],
    ),
    *cases("postgresql", postgresql_error, Failure.NO_CONNECTION_LEFT, ["53300", "53400"]),
    *cases("postgresql", postgresql_error, Failure.NOT_LET_IN, ["28P01", "28000", "3D000"]),
    *cases("postgresql", postgresql_error, Failure.OTHER, ["22012", "42601"]),
    *cases(
        "postgresql",
        postgresql_error,
        Failure.REFUSED,
        ["23502", "23514", "23P01", "23001", "44000"],
    ),
    *cases("postgresql", postgresql_error, Failure.ORPHANED, ["23503"]),
    *cases("postgresql", postgresql_error, Failure.HELD, ["55P03"]),
    *cases("postgresql", postgresql_error, Failure.FORBIDDEN, ["42501"]),
    *cases(
        "postgresql",
        postgresql_error,
        Failure.RESOURCE,
        ["53100", "53200", "25006", "58030", "XX001"],
    ),
    *cases("mysql", mysql_error, Failure.CONFLICT, [1213, 1205, 1020, 1615]),
    *cases("mysql", mysql_error, Failure.HELD, [3572]),
    *cases("mysql", mysql_error, Failure.NO_CONNECTION_LEFT, [1040, 1203, 1226]),
    *cases("mysql", mysql_error, Failure.NOT_LET_IN, [1044, 1045, 1049]),
    *cases("sqlite", sqlite_error, Failure.NOT_LET_IN, [14]),
    *cases("mysql", mysql_error, Failure.DUPLICATE, [1062]),
    *cases("mysql", mysql_error, Failure.TABLE_MISSING, [1054, 1146]),
    *cases("mysql", mysql_error, Failure.DISCONNECTED, [1053, 1927, 2003, 2006, 2013, 4031]),
    *cases("mysql", mysql_error, Failure.OTHER, [1064, 1406]),
    *cases("mysql", mysql_error, Failure.ORPHANED, [1216, 1217, 1451, 1452]),
    *cases("mysql", mysql_error, Failure.REFUSED, [1048, 1364, 3819, 4025, 1369, 1644]),
    *cases("mysql", mysql_error, Failure.FORBIDDEN, [1142, 1143, 1227, 1370]),
    *cases("mysql", mysql_error, Failure.RESOURCE, [28, 1021, 1041, 1114, 1290, 1836]),
    *cases("sqlite", sqlite_error, Failure.CANCELLED, [9]),
    *cases("postgresql", postgresql_error, Failure.CANCELLED, ["57014"]),
    *cases("mysql", mysql_error, Failure.CANCELLED, [1317, 1969, 3024]),
]
WITHOUT_CODES = [
    ("sqlite", sqlite_error(1, "no such table: agent_events"), Failure.TABLE_MISSING, 1),
    ("sqlite", ValueError("not of the driver"), Failure.OTHER, None),
    ("postgresql", ConnectionResetError(104, "reset"), Failure.DISCONNECTED, None),
    ("postgresql", asyncpg.InterfaceError("closed"), Failure.DISCONNECTED, None),
    ("postgresql", asyncpg.InternalClientError("odd"), Failure.DISCONNECTED, None),
    ("postgresql", TimeoutError(), Failure.TIMED_OUT, None),
    ("postgresql", OSError(errno.ETIMEDOUT, "as TCP says it"), Failure.DISCONNECTED, None),
    ("postgresql", PoolTimeout("none"), Failure.NO_CONNECTION_LEFT, None),
    ("mysql", PoolTimeout("none"), Failure.NO_CONNECTION_LEFT, None),
    ("sqlite", PoolTimeout("none"), Failure.NO_CONNECTION_LEFT, None),
    (
        "postgresql",
        asyncpg.InvalidCachedStatementError("cached statement plan is invalid"),
        Failure.CONFLICT,
        "0A000",
    ),
    ("postgresql", postgresql_error("0A000"), Failure.OTHER, "0A000"),
    (
        "mysql",
        asyncmy.errors.OperationalError(2013, "Lost connection during query (read timeout)"),
        Failure.TIMED_OUT,
        2013,
    ),
    ("postgresql", ValueError("not of the driver"), Failure.OTHER, None),
    ("mysql", ConnectionResetError(104, "reset"), Failure.DISCONNECTED, None),
    ("mysql", asyncio.IncompleteReadError(b"", 4), Failure.DISCONNECTED, None),
    ("mysql", ValueError("not of the driver"), Failure.OTHER, None),
]


def dialect_named(name: str) -> Dialect:
    return dialect_of(create_async_engine(URLS[name]))


@pytest.mark.parametrize(("name", "error", "failure", "code"), [*CODES, *WITHOUT_CODES])
def test_an_error_of_the_driver_is_understood(
    name: str, error: Exception, failure: Failure, code: Any
) -> None:
    assert dialect_named(name).diagnose(error) == (failure, code)


@pytest.mark.parametrize(("name", "error", "failure", "code"), CODES)
def test_it_is_understood_as_sqlalchemy_wraps_it(
    name: str, error: Exception, failure: Failure, code: Any
) -> None:
    """For asyncpg, in an error of its adapter that has the code."""
    inner: Any = error
    if name == "postgresql":
        adapter: Any = create_async_engine(URLS[name]).dialect.dbapi
        inner = adapter.Error(str(error))
        inner.pgcode = inner.sqlstate = code
    assert dialect_named(name).diagnose(DBAPIError("SELECT 1", None, inner)) == (failure, code)


# --- Deadlocks ----------------------------------------------------------------------------------

CODE = {"postgresql": "40P01", "mariadb": 1213}
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE NOT granted AND datname = current_database()",
    "mariadb": "SELECT count(*) FROM information_schema.innodb_trx "
    "JOIN information_schema.processlist ON id = trx_mysql_thread_id "
    "WHERE trx_state = 'LOCK WAIT' AND db = database()",
}


class Rival:
    """A transaction that owns session b, and then wants a; whoever wants b meanwhile loses.

    PostgreSQL ends the one that has waited longest; MariaDB the one that has changed least.
    """

    def __init__(self, name: str, connection: AsyncConnection) -> None:
        self._name = name
        self._connection = connection

    async def own(self, session_id: str) -> None:
        query = text(
            "SELECT version FROM agent_streams "
            "WHERE stream_id = :session_id AND stream_type = 'session' FOR UPDATE"
        )
        await self._connection.execute(query, {"session_id": session_id})

    async def begin(self) -> None:
        await self._connection.execute(
            text("INSERT INTO ballast VALUES (:n)"), [{"n": n} for n in range(100)]
        )
        await self.own("b")

    async def cross(self, engine: AsyncEngine) -> None:
        """Want a too, as soon as someone waits."""
        async with engine.connect() as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            while not await autocommit.scalar(text(WAITING[self._name])):
                await asyncio.sleep(0.15)  # MariaDB answers afresh after 0.1 s without a question
        await self.own("a")
        await self._connection.commit()


@pytest.fixture
async def rival(server_backend: Backend, store: MetadataStore) -> AsyncIterator[Rival]:
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE ballast (n INTEGER)")
    # Among many, as MariaDB may lock a whole table that is small.
    names = ["a", "b", *(f"other{n}" for n in range(300))]
    await asyncio.gather(*(store.session(name).set_metadata({"k": 0}) for name in names))
    async with store.engine.connect() as connection:
        yield Rival(server_backend.name, connection)


async def found(store: MetadataStore) -> list[tuple[dict[str, Any], list[int]]]:
    sessions = [store.session(name) for name in ("a", "b")]
    return [(await session.get_metadata(), await versions(session)) for session in sessions]


async def test_a_deadlock_ends_the_transaction_of_the_callers(
    server_backend: Backend, store: MetadataStore, rival: Rival
) -> None:
    a, b = store.session("a"), store.session("b")
    await rival.begin()
    async with store.engine.connect() as connection:
        await a.set_metadata({"k": 1}, connection=connection)
        crossing = asyncio.create_task(rival.cross(store.engine))
        with pytest.raises(DatabaseBusy) as caught:
            await b.set_metadata({"k": 1}, connection=connection)
        assert caught.value.code == CODE[server_backend.name]
        await connection.rollback()
    await crossing
    assert await found(store) == [({"k": 0}, [1])] * 2
    async with store.engine.begin() as connection:
        for session in (a, b):
            await session.set_metadata({"k": 2}, connection=connection)
    assert await found(store) == [({"k": 2}, [1, 2])] * 2


async def test_a_transaction_of_our_own_is_in_no_deadlock(
    store: MetadataStore, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of both sessions: the one that is free is written and let go before the other."""
    begun = count_transactions(store, monkeypatch)
    await rival.begin()
    crossing = asyncio.create_task(rival.cross(store.engine))
    await asyncio.gather(*(store.session(name).set_metadata({"k": 1}) for name in ("a", "b")))
    await crossing
    assert len(begun) <= 3, "in one, in steps, and in the lane of what was held"
    assert await found(store) == [({"k": 1}, [1, 2])] * 2


# --- No answer ----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.1)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


CALLS: dict[str, Callable[[MetadataSession], Awaitable[Any]]] = {
    "set": lambda session: session.set_metadata({"k": 1}),
    "pop": lambda session: session.pop_item(),
    "get": lambda session: session.get_metadata(),
    "history": lambda session: session.history(),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+asyncmy"])
async def test_a_server_that_is_not_there_is_reported(
    closed_port: int, driver: str, name: str
) -> None:
    engine = create_async_engine(f"{driver}://nobody:secret@127.0.0.1:{closed_port}/nothing")
    where = f"no connection to 127.0.0.1:{closed_port}/nothing"
    with pytest.raises(DatabaseUnavailable, match=where) as caught:
        await CALLS[name](MetadataSession("s", engine=engine, retry_for=0.1))
    assert "secret" not in str(caught.value)
    await engine.dispose()


@pytest.mark.usefixtures("impatient", "server_backend")
@pytest.mark.parametrize("callers", [1, 3])
async def test_what_became_of_a_write_is_found_out_by_repeating_it(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, callers: int
) -> None:
    """Though each was recorded, no answer ever came."""
    session, event_ids = store.session("s"), [new_event_id() for _ in range(callers)]
    write = store._log.database.dialect.write

    async def loses_the_answer(*arguments: Any, **options: Any) -> Any:
        await write(*arguments, **options)
        raise ConnectionResetError("as if the server had gone right after the commit")

    def calls() -> list[Awaitable[Any]]:
        return [
            session.set_metadata({f"k{n}": n}, event_id=event_id)
            for n, event_id in enumerate(event_ids)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(store._log.database.dialect, "write", loses_the_answer)
        results = await asyncio.gather(*calls(), return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown] * callers
    events = await asyncio.gather(*calls())
    assert [event.event_id for event in events] == event_ids
    assert await versions(session) == list(range(1, callers + 1))


# --- Engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "driver", "message"),
    [
        ("postgresql", "psycopg", r"postgresql\+psycopg is not supported.*postgresql\+asyncpg://"),
        ("mysql", "aiomysql", r"mysql\+aiomysql is not supported.*mysql\+asyncmy://"),
        ("oracle", "oracledb", r"oracle\+oracledb is not supported.*sqlite\+aiosqlite://"),
    ],
)
def test_an_engine_without_a_dialect_is_refused(name: str, driver: str, message: str) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    vars(engine.sync_engine)["dialect"] = SimpleNamespace(name=name, driver=driver)
    with pytest.raises(UnsupportedEngine, match=message):
        MetadataStore(engine)
    with pytest.raises(UnsupportedEngine, match=message):
        MetadataSession("s", engine=engine)
