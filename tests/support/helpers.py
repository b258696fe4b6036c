"""What several tests need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MetadataSession, MetadataStore
from tests.support.backends import Backend


def user(content: object) -> Any:
    """An item: what the user says."""
    return {"role": "user", "content": content}


def users(*contents: str) -> list[Any]:
    return [user(content) for content in contents]


def contents(items: Sequence[Any]) -> list[str]:
    return [item["content"] for item in items]


async def versions(session: MetadataSession) -> list[int]:
    return [entry.event.version for entry in await session.history()]


def count_transactions(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one with every transaction that the store begins."""
    begun: list[None] = []
    write = store._log.database.dialect.write

    async def counted(*arguments: Any, **options: Any) -> Any:
        begun.append(None)
        return await write(*arguments, **options)

    monkeypatch.setattr(store._log.database.dialect, "write", counted)
    return begun


async def refuse(engine: AsyncEngine, backend: Backend, kind: str = "refused") -> None:
    """Let the database itself refuse all events of the type ``kind``."""
    match backend.name:
        case "postgresql":
            statements = [
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN RAISE EXCEPTION 'not in this database'; END$$",
                "CREATE TRIGGER refuse BEFORE INSERT ON agent_events FOR EACH ROW "
                f"WHEN (NEW.type = '{kind}') EXECUTE FUNCTION refuse()",
            ]
        case "mariadb":
            statements = [
                "CREATE TRIGGER refuse BEFORE INSERT ON agent_events FOR EACH ROW "
                f"IF NEW.type = '{kind}' THEN "
                "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not in this database'; END IF"
            ]
        case _:
            statements = [
                f"CREATE TRIGGER refuse BEFORE INSERT ON agent_events WHEN NEW.type = '{kind}' "
                "BEGIN SELECT RAISE(ABORT, 'not in this database'); END"
            ]
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


def heed_foreign_keys(engine: AsyncEngine) -> None:
    """Have SQLite check foreign keys on the connections that ``engine`` opens from now on."""
    if engine.dialect.name != "sqlite":
        return

    def connected(dbapi: Any, _: object) -> None:
        cursor = dbapi.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    event.listen(engine.sync_engine, "connect", connected)
