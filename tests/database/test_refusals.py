"""What the database itself refuses is no conflict: it is said at once, and harms no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import DatabaseRefused, MetadataSession, MetadataStore, NewEvent, verify_projection
from eventmeta.database import retry as retrying
from tests.support.backends import NAMES, Backend
from tests.support.helpers import count_transactions, heed_foreign_keys, refuse, user, versions

SOON = 2.5
"""Less than it was tried for, as if it were a conflict; much more than it takes."""


@dataclass(frozen=True)
class Ban:
    """A rule of the app's own, and what is against it.

    Attributes:
        rules: The statements that make the rule, by backend; others do not know it.
        act: What is refused.
        constraint: Its name, where the database tells it.
        table: The table, likewise.
    """

    rules: dict[str, tuple[str, ...]]
    act: Callable[[MetadataStore, MetadataSession], Awaitable[Any]]
    constraint: str | None = None
    table: str | None = None


SHARES = "FOREIGN KEY (chat) REFERENCES agent_sessions (session_id)"
BINARY = "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
BANS: dict[str, Ban] = {
    "a row of the app's refers to it": Ban(
        {
            "sqlite": (
                f"CREATE TABLE shares (chat VARCHAR, {SHARES})",
                "INSERT INTO shares VALUES ('s')",
            ),
            "postgresql": (
                f"CREATE TABLE shares (chat VARCHAR, CONSTRAINT shared {SHARES})",
                "INSERT INTO shares VALUES ('s')",
            ),
            "mariadb": (
                f"CREATE TABLE shares (chat {BINARY}, CONSTRAINT shared {SHARES})",
                "INSERT INTO shares VALUES ('s')",
            ),
        },
        lambda _, session: session.clear_session(),
        "shared",
        "shares",
    ),
    "it refers to no row of the app's": Ban(
        {
            "postgresql": (
                "CREATE TABLE kinds (kind VARCHAR PRIMARY KEY)",
                "INSERT INTO kinds VALUES ('items_added'), ('metadata_set')",
                "ALTER TABLE agent_events ADD CONSTRAINT known "
                "FOREIGN KEY (type) REFERENCES kinds (kind)",
            ),
        },
        lambda store, session: store.append(session.session_id, NewEvent("refused")),
        "known",
        "agent_events",
    ),
    "a check": Ban(
        {
            "postgresql": (
                "ALTER TABLE agent_sessions_metadata ADD CONSTRAINT small CHECK (value <> '666')",
            ),
            "mariadb": (
                "ALTER TABLE agent_sessions_metadata ADD CONSTRAINT small CHECK (value <> '666')",
            ),
        },
        lambda _, session: session.set_metadata({"k": 666}),
        "small",
        "agent_sessions_metadata",
    ),
    "not null": Ban(
        {
            "postgresql": ("ALTER TABLE agent_events ALTER actor SET NOT NULL",),
            "mariadb": ("ALTER TABLE agent_events MODIFY actor VARCHAR(255) NOT NULL",),
        },
        lambda store, session: store.append(session.session_id, NewEvent("refused")),
        None,
    ),
    "an exclusion": Ban(
        {
            "postgresql": (
                "ALTER TABLE agent_sessions_metadata ADD CONSTRAINT single "
                "EXCLUDE USING btree (value WITH =) WHERE (key = 'unique')",
            ),
        },
        lambda _, session: session.set_metadata({"unique": 1}),
        "single",
        "agent_sessions_metadata",
    ),
}


@pytest.fixture
def engine(engine: AsyncEngine) -> AsyncEngine:
    """An engine of an app that has SQLite heed foreign keys."""
    heed_foreign_keys(engine)
    return engine


def backends_of(ban: Ban) -> list[str]:
    return [name for name in NAMES if name.partition("-")[0] in ban.rules]


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.only_on(*backends_of(ban)))
            for name, ban in BANS.items()
        ),
        "a trigger",
    ],
)
async def test_it_is_said_at_once_and_harms_no_other(
    backend: Backend,
    engine: AsyncEngine,
    store: MetadataStore,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    ban = BANS.get(name)
    if ban is None:
        ban = Ban({}, lambda store, each: store.append(each.session_id, NewEvent("refused")))
        await refuse(engine, backend)
    else:
        await store.session("first").set_metadata({"unique": 1}, actor="ann")
        await store.session("s").set_metadata({"k": 1}, actor="ann")
        async with engine.begin() as connection:
            for rule in ban.rules[backend.name.partition("-")[0]]:
                await connection.exec_driver_sql(rule)
    session, begun = store.session("s"), count_transactions(store, monkeypatch)
    others = [store.session(f"o{n}") for n in range(6)]
    begin = time.monotonic()
    *results, error = await asyncio.gather(
        *(other.add_items([user("a")], actor="ann") for other in others),
        ban.act(store, session),
        return_exceptions=True,
    )
    assert time.monotonic() - begin < SOON
    assert len(begun) < 16
    assert isinstance(error, DatabaseRefused), repr(error)
    assert error.code is not None
    if not backend.name.startswith("sqlite"):
        assert error.constraint == ban.constraint
    if ban.table and not backend.name.startswith("sqlite"):
        assert error.table == ban.table
    assert "666" not in str(error)
    assert not [result for result in results if isinstance(result, BaseException)]
    for other in others:
        assert await versions(other) == [1]
    assert await verify_projection(store) == []


async def test_a_missing_right_is_said_at_once(
    postgresql_backend: Backend, url: str, store: MetadataStore
) -> None:
    async with store.engine.begin() as connection:
        for statement in (
            "DO $$ BEGIN CREATE ROLE weak; EXCEPTION WHEN duplicate_object THEN END $$",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak",
        ):
            await connection.exec_driver_sql(statement)
    engine = create_async_engine(url, connect_args={"server_settings": {"role": "weak"}})
    weak, begin = MetadataStore(engine), time.monotonic()
    for call in (
        weak.session("s").set_metadata({"k": 1}),
        weak.session("s").pop_item(),
        weak.session("s").set_metadata({"k": 1}, expected_version=0),
    ):
        with pytest.raises(DatabaseRefused, match="permission denied") as caught:
            await call
        assert caught.value.code == "42501"
    assert time.monotonic() - begin < SOON
    await engine.dispose()


async def test_a_session_deleted_meanwhile_is_tried_again_a_few_times(
    server_backend: Backend, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The foreign keys of our own tables, as if somebody deleted the row each time."""
    begun = count_transactions(store, monkeypatch)
    session = store.session("s")
    async with store.engine.begin() as connection:
        if server_backend.name == "postgresql":
            await connection.exec_driver_sql(
                "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN NEW.session_id := 'gone'; RETURN NEW; END$$"
            )
            trigger = "FOR EACH ROW EXECUTE FUNCTION lose()"
        else:
            trigger = "FOR EACH ROW SET NEW.session_id = 'gone'"
        await connection.exec_driver_sql(
            f"CREATE TRIGGER lose BEFORE INSERT ON agent_messages {trigger}"
        )
    begin = time.monotonic()
    with pytest.raises(DatabaseRefused) as caught:
        await session.add_items([user("a")])
    assert time.monotonic() - begin < SOON
    assert caught.value.table == "agent_messages"
    assert 2 < len(begun) <= retrying.ORPHANS + 1
    async with store.engine.begin() as connection:
        dropped = " ON agent_messages" if server_backend.name == "postgresql" else ""
        await connection.exec_driver_sql(f"DROP TRIGGER lose{dropped}")
    await session.add_items([user("a")])
    assert await versions(session) == [1]
