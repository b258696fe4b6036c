"""A database that cannot do its work for a while, as it says so itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.backends import SERVERS, Backend

STATES = {
    "full disk": ("53100", 1114, "PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000"),
    "read-only": ("25006", 1290, "PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
    "out of memory": ("53200", 1041, None, None),
    "no connection left": ("53300", 1040, None, None),
    "input or output error": ("58030", 1030, None, None),
}
"""What PostgreSQL and MariaDB say, in a trigger; and what has SQLite say it, and be well again."""

PARAMETERS = {
    state: pytest.param(state, marks=() if break_ else pytest.mark.only_on(*SERVERS))
    for state, (_, _, break_, _) in STATES.items()
}
"""The states as parameters of a test, each on the backends that can be brought into it."""


@asynccontextmanager
async def failing(
    engine: AsyncEngine, backend: Backend, state: str, table: str, code: str | None = None
) -> AsyncGenerator[None]:
    """Have the database refuse to write to ``table``, until the end of the block.

    Args:
        engine: Of the database.
        backend: Its kind.
        state: One of `STATES`.
        table: SQLite refuses to write to any.
        code: What a server says, if it is not that of the state.
    """
    sqlstate, number, break_, mend = STATES[state]
    if not backend.is_server:
        assert break_ is not None
        assert mend is not None
        with _said_to_connections(engine, break_, mend):
            yield
        return
    said = code or {"postgresql": sqlstate, "mariadb": number}[backend.name]
    trigger = f"CREATE TRIGGER fail_{table} BEFORE INSERT ON {table} FOR EACH ROW"
    make, drop = {
        "postgresql": (
            [
                f"CREATE FUNCTION fail_{table}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$BEGIN RAISE EXCEPTION 'it fails' USING ERRCODE = '{said}'; END$$",
                f"{trigger} EXECUTE FUNCTION fail_{table}()",
            ],
            [f"DROP TRIGGER fail_{table} ON {table}", f"DROP FUNCTION fail_{table}()"],
        ),
        "mariadb": (
            [
                f"{trigger} SIGNAL SQLSTATE 'HY000' "
                f"SET MYSQL_ERRNO = {said}, MESSAGE_TEXT = 'it fails'"
            ],
            [f"DROP TRIGGER fail_{table}"],
        ),
    }[backend.name]
    await _execute(engine, make)
    yield
    await _execute(engine, drop)


async def _execute(engine: AsyncEngine, statements: list[str]) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


@contextmanager
def _said_to_connections(engine: AsyncEngine, first: str, then: str) -> Iterator[None]:
    """Say ``first`` to each connection that is used from now on, and ``then`` from the end on."""
    said = [first]

    def checked_out(connection: Any, *_: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(said[0])
        cursor.close()

    event.listen(engine.sync_engine, "checkout", checked_out)
    yield
    said[0] = then
