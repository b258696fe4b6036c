"""Projections of an app's own: registering them, and keeping them inline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    insert,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmeta import (
    EventMetaError,
    InvalidInput,
    InvalidProjection,
    MetadataStore,
    NewEvent,
    ProjectionBehind,
    ProjectionFailed,
    new_event_id,
    verify_projection,
)
from projections import AppliedProjection, Event, Projection
from projections.types import SessionId
from tests.support.acting import ADMIN, ALICE, submit, together
from tests.support.backends import Backend
from tests.support.helpers import users
from tests.support.sample_projections import (
    log_of,
    noted,
    rows,
    tag,
    tags,
    tags_of,
    trail,
    trail_of,
    untag,
)

pytestmark = pytest.mark.each_dialect

# --- Registering --------------------------------------------------------------------------------


def table(name: str = "own", *columns: Any, **options: Any) -> Table:
    return Table(
        name, MetaData(), *(columns or (Column("id", Integer, primary_key=True),)), **options
    )


def altered(**fields: Any) -> AppliedProjection:
    return replace(trail(), **fields)


def applied(*tables: Table, **fields: Any) -> AppliedProjection:
    return replace(trail(), tables=tables, **fields)


BAD: dict[str, Callable[[], Any]] = {
    "no projection": lambda: "tags",
    "a table": table,
    "an empty name": lambda: tags(name=""),
    "a name in capitals": lambda: trail(name="Trail"),
    "a name too long": lambda: replace(trail(), name="n" * 65),
    "no text as a name": lambda: altered(name=7),
    "version 0": lambda: tags(version=0),
    "version True": lambda: tags(version=True),
    "version as text": lambda: tags(version="1"),
    "streams of another type": lambda: tags(stream_type="item"),
    "no event types": lambda: tags(event_types=frozenset()),
    "an event type that is none": lambda: tags(event_types=frozenset({"Tagged"})),
    "a text of event types": lambda: tags(event_types="tagged"),
    "no tables": applied,
    "a table not in a tuple": lambda: altered(tables=table()),
    "no table": lambda: tags(table=None),
    "no primary key": lambda: applied(table("own", Column("id", Integer))),
    "a foreign key": lambda: applied(
        table(
            "own",
            Column("id", String(9), ForeignKey("agent_sessions.session_id"), primary_key=True),
        )
    ),
    "a schema": lambda: applied(table("own", schema="other")),
    "a table name that must be quoted": lambda: applied(table("own table")),
    "a table name too long": lambda: applied(table("t" * 46)),
    "one table twice": lambda: applied(table("own"), table("Own")),
    "a table of the store": lambda: applied(table("Agent_Sessions")),
    "the view of the store": lambda: applied(table("agent_metadata_changes")),
    "a name that rebuilds use": lambda: applied(table("own_building")),
    "a name that swaps use": lambda: applied(table("own_retired")),
    "the name of a built-in": lambda: replace(tags(), name="users"),
    "a Select without the columns": lambda: tags(table=table("own")),
    "a Select that fails": lambda: tags(select=lambda events: events.c.nothing),
    "a kept column that there is not": lambda: tags(kept=frozenset({"missing"})),
    "another unique key": lambda: tags(table=with_unique_key(tags().table)),
    "nothing to apply": lambda: altered(apply=None),
}


def with_unique_key(table: Table) -> Table:
    table.append_constraint(UniqueConstraint("last"))
    return table


@pytest.fixture
def unconnected() -> MetadataStore:
    """A store whose database cannot be reached, so that any I/O fails."""
    return MetadataStore(create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing"))


@pytest.mark.parametrize("make", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("inline", [False, True])
def test_what_cannot_be_kept_is_refused_without_io(
    unconnected: MetadataStore, make: Callable[[], Any], inline: bool
) -> None:
    before = [each.projection.name for each in unconnected.log.registry]
    with pytest.raises(InvalidInput) as refusal:
        unconnected.register(make(), inline=inline)
    assert len(str(refusal.value)) > 30
    assert [each.projection.name for each in unconnected.log.registry] == before
    assert "own" not in unconnected.log.database.tables.metadata.tables


def test_registering_the_same_twice_changes_nothing(unconnected: MetadataStore) -> None:
    projection = tags()
    unconnected.register(projection)
    unconnected.register(projection)
    MetadataStore(unconnected.engine).register(projection)
    names = [each.projection.name for each in unconnected.log.registry]
    assert names == ["metadata", "users", "tags"]


@pytest.mark.parametrize(
    ("other", "inline"),
    [
        (lambda known: known, True),
        (lambda known: replace(known, version=2), False),
        (lambda known: replace(known, name="other"), False),
        (lambda known: tags(), False),
        (lambda known: replace(trail(), name="tags"), False),
    ],
    ids=["in another way", "another version", "another's table", "another table", "another kind"],
)
def test_names_and_tables_are_of_one_projection(
    unconnected: MetadataStore, other: Callable[[Projection], Any], inline: bool
) -> None:
    known = tags()
    unconnected.register(known)
    with pytest.raises(InvalidProjection):
        unconnected.register(other(known), inline=inline)


async def test_create_tables_makes_the_tables_of_projections(engine: AsyncEngine) -> None:
    store = MetadataStore(engine)
    await store.create_tables()
    store.register(tags(), inline=True)
    store.register(trail())
    script = await store.schema_sql()
    assert [name for name in ("tags", "trail", "idx_tags_tag", "idx_trail_last") if name in script]
    async with engine.begin() as connection:
        for statement in filter(str.strip, script.split(";\n")):
            await connection.exec_driver_sql(statement)
    assert await store.schema_sql() == ""
    assert await rows(store, "tags") == await rows(store, "trail") == []
    await store.create_tables()
    await store.session("s").set_metadata({"a": 1})
    await store.append("s", tag("x"))
    await store.catch_up()
    assert len(await rows(store, "tags")) == 1


async def test_an_inline_projection_is_behind_until_it_is_filled(store: MetadataStore) -> None:
    """From the events that were there before it."""
    first = await store.append("s", tag("x"))
    store.register(tags(), inline=True)
    await store.create_tables()
    second = await store.append("s", tag("y"))
    status = (await store.status()).projections["tags"]
    assert (status.version, status.checkpoint, status.lag_events) == (None, 0, 2)
    for event in (first, second):
        with pytest.raises(ProjectionBehind):
            await store.wait_for(event.position, "tags", timeout=0.1)
    await store.catch_up()
    await store.wait_for(second.position, "tags")
    status = (await store.status()).projections["tags"]
    assert (status.version, status.checkpoint, status.lag_events) == (1, second.position, 0)
    assert await rows(store, "tags") == tags_of(await log_of(store))
    assert (await store.status()).projections["metadata"].version is not None


async def test_a_session_that_creates_tables_makes_those_of_projections(
    engine: AsyncEngine,
) -> None:
    store = MetadataStore(engine)
    session = store.session("s", create_tables=True)
    await session.set_metadata({"a": 1})
    store.register(tags(), inline=True)
    await store.session("s", create_tables=True).set_metadata({"a": 2})
    await store.append("s", tag("x"))
    assert [row[1] for row in await rows(store, "tags")] == ["x"]


# --- The same table, inline or not --------------------------------------------------------------


async def test_a_select_is_the_same_inline_and_asynchronously(store: MetadataStore) -> None:
    store.register(tags("inline_tags"), inline=True)
    store.register(tags("later_tags"))
    await store.create_tables()
    await asyncio.gather(
        store.append("s", tag("x")),
        store.append("s", tag("y")),
        store.append("s", untag("x")),
        store.append("s", noted()),
        store.append("t", untag("never there")),
        store.append("t", tag("x", "é'\\")),
        store.session("s").set_metadata({"a": 1}),
        store.session("s").add_items(users("hello")),
    )
    await store.append("s", tag("x"))  # it was gone: a new row, since now
    await store.append("s", tag("x", "again"))  # the same row
    await store.append("t", untag("x"))
    await asyncio.gather(store.append("t", tag("x")), store.append("t", untag("x")))
    await asyncio.gather(store.append("t", untag("z")), store.append("t", tag("z")))
    expected = tags_of(await log_of(store))
    assert len(expected) == 3
    assert await rows(store, "inline_tags") == expected
    assert await rows(store, "later_tags") == []
    await store.catch_up("later_tags")
    assert await rows(store, "later_tags") == expected
    assert await store.replay(tags("scratch")) == await store.replay("inline_tags")


async def test_python_is_the_same_inline_and_asynchronously(store: MetadataStore) -> None:
    store.register(trail("inline_trail"), inline=True)
    store.register(trail("later_trail"))
    await store.create_tables()
    await asyncio.gather(*(store.append(f"s{n % 3}", noted(n)) for n in range(10)))
    await store.session("s0").set_metadata({"a": 1})
    await store.append("s0", noted())
    expected = trail_of(await log_of(store))
    assert await rows(store, "inline_trail") == expected
    await store.catch_up()
    assert await rows(store, "later_trail") == expected


def once_seen(swallow: Callable[[AsyncConnection], Awaitable[None]]) -> AppliedProjection:
    """A row for each stream; what is done about the error of a second one is ``swallow``."""
    table = Table("once_seen", MetaData(), Column("stream_id", SessionId, primary_key=True))

    async def apply(
        connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
    ) -> None:
        for event in events:
            try:
                await connection.execute(insert(tables[0]).values(stream_id=event.stream_id))
            except IntegrityError:
                await swallow(connection)

    return AppliedProjection("once_seen", 1, "session", frozenset({"noted"}), (table,), apply)


async def do_nothing(connection: AsyncConnection) -> None:
    """On PostgreSQL the transaction has failed by then, and would not be committed."""


async def roll_back(connection: AsyncConnection) -> None:
    await connection.rollback()


TOLD: dict[Any, str] = {
    do_nothing: "went on after an error with which the database undid the transaction",
    roll_back: "would end the transaction",
}


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("swallow", [do_nothing, roll_back])
async def test_what_is_acknowledged_is_kept_whatever_apply_swallows(
    store: MetadataStore,
    inline: bool,
    swallow: Callable[[AsyncConnection], Awaitable[None]],
) -> None:
    """It goes on where the database lets it; else the append fails, or the stream is parked."""
    told = TOLD[swallow]
    survives = swallow is do_nothing and store.engine.dialect.name != "postgresql"
    store.register(once_seen(swallow), inline=inline)
    await store.create_tables()
    await store.append("s", noted(1))
    if inline and not survives:
        with pytest.raises(ProjectionFailed, match=told):
            await store.append("s", noted(2))
    else:
        assert (await store.append("s", noted(2))).version == 2
    await store.append("t", noted(3))
    async with asyncio.timeout(20):
        await store.catch_up()
    parked = [] if inline else await store.parked_streams("once_seen")
    assert [each.stream_id for each in parked] == ([] if inline or survives else ["s"])
    assert all(told in each.error for each in parked)
    assert await rows(store, "once_seen") == [("s",), ("t",)]
    versions = [entry.version for entry in await store.session("s").history()]
    assert versions == ([1] if inline and not survives else [1, 2])


@pytest.mark.parametrize("inline", [True, False])
async def test_nobody_sees_what_is_yet_to_be_committed(store: MetadataStore, inline: bool) -> None:
    """While ``apply``, which reads through the store itself, takes its time."""
    applying, go_on = asyncio.Event(), asyncio.Event()
    table = Table("slow", MetaData(), Column("stream_id", SessionId, primary_key=True))

    async def apply(
        connection: AsyncConnection, events: Sequence[Event], tables: Sequence[Table]
    ) -> None:
        applying.set()
        await go_on.wait()
        assert await store.session("other").get_metadata() == {"k": 1}

    kinds = frozenset({"noted"})
    store.register(AppliedProjection("slow", 1, "session", kinds, (table,), apply), inline=inline)
    await store.create_tables()
    await store.catch_up()
    await store.session("other").set_metadata({"k": 1})
    before = (await store.status()).projections["slow"].checkpoint
    appending = asyncio.create_task(store.append("s", noted(1)))
    working = asyncio.gather(appending, appending if inline else catch_up(store, appending))
    await applying.wait()
    reading = asyncio.create_task(store.session("s").history())
    asking = asyncio.create_task(store.status())
    outside = [asyncio.create_task(store.session("other").get_metadata()) for _ in range(5)]
    try:
        await asyncio.sleep(0.2)
        assert not inline or not reading.done() or reading.result() == []
        if asking.done():
            assert asking.result().projections["slow"].checkpoint == before
    finally:
        go_on.set()
    await asyncio.gather(working, reading, asking, *outside)
    assert len(await store.session("s").history()) == 1


async def catch_up(store: MetadataStore, appending: asyncio.Task[Any]) -> None:
    await appending
    await store.catch_up("slow")


async def test_events_on_behalf_of_others_reach_their_projections(store: MetadataStore) -> None:
    """A claim records ``user_created`` and ``user_assigned`` besides the event itself."""
    kinds = ("user_created", "user_deleted", "metadata_set")
    store.register(trail("people", kinds, stream_type="user"), inline=True)
    store.register(trail("owned", ("user_assigned",)), inline=True)
    store.register(trail("later_people", kinds, stream_type="user"))
    await store.create_tables()
    await together(store, ALICE.add("s"), ALICE.add("t"))
    await submit(store, ADMIN.set_user("alice", {"k": 1}))
    await submit(store, ADMIN.delete_user("alice"))
    await submit(store, ADMIN.set("alice", {"k": "a session of this name"}))
    log = await log_of(store)
    expected = trail_of(log, kinds, "user")
    assert expected[0][:2] == ("alice", "1,2,3")
    assert await rows(store, "people") == expected
    assert await rows(store, "owned") == trail_of(log, ("user_assigned",))
    assert len(await rows(store, "owned")) == 2
    await store.catch_up()
    assert await rows(store, "later_people") == expected


async def test_a_select_sees_only_what_it_asked_for(store: MetadataStore) -> None:
    """Inline too, where the other events of the batch are at hand."""
    store.register(tags(event_types=frozenset({"tagged"})), inline=True)
    await store.create_tables()
    await asyncio.gather(store.append("s", tag("x")), store.append("s", untag("x")))
    await submit(store, ADMIN.set_user("alice", {"tag": "y"}))
    assert [row[1] for row in await rows(store, "tags")] == ["x"]


# --- Part of the append's transaction -----------------------------------------------------------


async def test_a_failing_projection_fails_its_command_alone(store: MetadataStore) -> None:
    store.register(trail(refused=["bad"]), inline=True)
    await store.create_tables()
    outcomes = await asyncio.gather(
        store.append("a", noted(1)),
        store.append("b", noted("bad")),
        store.append("a", noted(2)),
        store.append("b", noted(3)),
        store.append("c", noted("bad")),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == [
        "RecordedEvent",
        "ProjectionFailed",
        "RecordedEvent",
        "RecordedEvent",
        "ProjectionFailed",
    ]
    failure = outcomes[1]
    assert isinstance(failure, ProjectionFailed)
    assert failure.projection == "trail"
    assert "ValueError: bad is refused" in str(failure)
    log = await log_of(store)
    assert [(event.stream_id, event.version) for event in log] == [("a", 1), ("a", 2), ("b", 1)]
    assert await rows(store, "trail") == trail_of(log)


@pytest.mark.parametrize(
    "error", [KeyError("n"), InvalidInput("no"), OSError("no"), TimeoutError()]
)
async def test_whatever_a_projection_raises_is_its_failure(
    store: MetadataStore, error: Exception
) -> None:
    """Also what looks like the library's own error, or like a lost connection."""

    async def apply(*_: Any) -> None:
        raise error

    store.register(replace(trail(), apply=apply), inline=True)
    await store.create_tables()
    async with asyncio.timeout(5):
        with pytest.raises(ProjectionFailed) as failure:
            await store.append("s", noted())
    assert failure.value.__cause__ is error
    assert await log_of(store) == []


async def test_what_the_database_refuses_fails_the_command_alone(store: MetadataStore) -> None:
    """At once, although two writers of one key could have met there."""

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        for event in events:
            row = {"stream_id": "the only one", "seen": "", "last": event.position}
            await connection.execute(tables[0].insert().values(**row))

    store.register(replace(trail(), apply=apply), inline=True)
    store.register(tags(), inline=True)
    await store.create_tables()
    await store.append("s", noted())
    async with asyncio.timeout(5):
        with pytest.raises(ProjectionFailed):
            await store.append("s", noted())
        with pytest.raises(EventMetaError):
            await store.append("s", tag("x", None))
    assert len(await log_of(store)) == 1
    await store.append("s", tag("x"))


async def test_two_writers_who_add_one_key_are_repeated(store: MetadataStore) -> None:
    """Each saw that it is not there yet, as two processes may."""
    projection, races = trail(), iter([True, False])

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        if next(races):
            row = {"stream_id": "s", "seen": "by another", "last": 0}
            await connection.execute(tables[0].insert(), [row, row])
        await projection.apply(connection, events, tables)

    store.register(replace(projection, apply=apply), inline=True)
    await store.create_tables()
    await store.append("s", noted())
    ((stream_id, seen, _),) = expected = trail_of(await log_of(store))
    assert (stream_id, seen) == ("s", "1")
    assert await rows(store, "trail") == expected


async def test_the_callers_rollback_takes_the_rows_along(store: MetadataStore) -> None:
    store.register(trail(refused=["bad"]), inline=True)
    store.register(tags(), inline=True)
    await store.create_tables()
    async with store.engine.connect() as connection:
        await store.append("s", noted(), connection=connection)
        await store.append("s", tag("x"), connection=connection)
        await connection.rollback()
    assert await rows(store, "trail") == await rows(store, "tags") == []
    assert await log_of(store) == []
    async with store.engine.begin() as connection:
        await store.append("s", noted(), connection=connection)
        with pytest.raises(ProjectionFailed):
            await store.append("s", noted("bad"), connection=connection)
        await store.append("s", tag("x"), connection=connection)
        await store.append("s", noted(), connection=connection)
    log = await log_of(store)
    assert [event.version for event in log] == [1, 2, 3]
    assert await rows(store, "trail") == trail_of(log)
    assert await rows(store, "tags") == tags_of(log)


async def test_a_repeated_event_id_does_not_apply_twice(store: MetadataStore) -> None:
    store.register(trail(), inline=True)
    store.register(tags(), inline=True)
    await store.create_tables()
    for event in (noted(event_id=new_event_id()), replace(tag("x"), event_id=new_event_id())):
        first = await store.append("s", event)
        assert await store.append("s", event) == first
        assert await asyncio.gather(*[store.append("s", event)] * 3) == [first] * 3
        async with store.engine.begin() as connection:
            assert await store.append("s", event, connection=connection) == first
    log = await log_of(store)
    assert len(log) == 2
    assert await rows(store, "trail") == trail_of(log)
    assert await rows(store, "tags") == tags_of(log)


async def test_a_deadlock_in_a_projection_ends_the_callers_transaction(
    mariadb_backend: Backend, store: MetadataStore
) -> None:
    """MariaDB has undone all of it; what the caller does next must not stand alone."""

    async def apply(connection: Any, events: Any, tables: Any) -> None:
        await connection.execute(text("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"))

    store.register(replace(trail(), apply=apply), inline=True)
    await store.create_tables()
    async with store.engine.connect() as connection:
        await store.append("s", NewEvent("other"), connection=connection)
        with pytest.raises(EventMetaError):
            await store.append("s", noted(), connection=connection)
        assert not connection.in_transaction()
    assert await log_of(store) == []


async def test_verification_compares_what_is_inline(engine: AsyncEngine) -> None:
    store = MetadataStore(engine)
    store.register(tags(), inline=True)
    await store.create_tables()
    await asyncio.gather(store.append("s", tag("x")), store.append("s", noted()))
    assert await verify_projection(store) == []
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE tags SET note = 'by hand'"))
    assert [(each.projection, each.problem) for each in await verify_projection(store)] == [
        ("tags", "different")
    ]
