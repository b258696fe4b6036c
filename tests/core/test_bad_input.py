"""Bad input is refused with an error that helps, before any I/O, the same for every database."""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from eventmeta import (
    EventMetaError,
    InvalidIdentifier,
    InvalidInput,
    InvalidKey,
    InvalidPoint,
    InvalidValue,
    MetadataSession,
    MetadataStore,
    NewEvent,
    TablesMissing,
    ValueTooLarge,
    acting_as,
    backfill_conversations,
    new_event_id,
)

URLS = {
    "sqlite": "sqlite+aiosqlite://",
    "postgresql": "postgresql+asyncpg://nobody@nowhere.invalid/nothing",
    "mysql": "mysql+asyncmy://nobody@nowhere.invalid/nothing",
}


class Colour(enum.StrEnum):
    RED = "red"


class Model:
    """Looks like a pydantic model."""

    def model_dump(self, mode: str) -> dict[str, Any]:
        raise NotImplementedError


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"n": value}
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.fixture(params=URLS)
async def unreachable(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """An engine on which any attempt to connect fails the test."""
    engine = create_async_engine(URLS[request.param], poolclass=NullPool)
    attempts = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def connects(*_: Any) -> None:
        attempts.append("connect")
        pytest.fail("the input was not refused before the first connection")

    yield engine
    assert not attempts
    await engine.dispose()


@pytest.fixture
def refusing(unreachable: AsyncEngine) -> MetadataSession:
    return MetadataSession("alpha", engine=unreachable, create_tables=True)


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    """A session at version 1 in a real database."""
    session = MetadataSession("alpha", engine=engine, create_tables=True)
    await session.set_metadata({"before": 1})
    return session


async def assert_untouched(session: MetadataSession) -> None:
    assert await session.get_metadata() == {"before": 1}
    assert [entry.version for entry in await session.history()] == [1]


# --- Keys ---------------------------------------------------------------------------------------

BAD_KEYS: dict[str, tuple[Any, str]] = {
    "integer": (1, "is a int; keys are strings"),
    "none": (None, "keys are strings"),
    "bytes": (b"key", "is a bytes"),
    "empty": ("", "is empty"),
    "256 bytes": ("k" * 256, "256 bytes .* at most 255"),
    "258 bytes in 86 characters": ("\u20ac" * 86, "258 bytes"),
    "nul": ("a\x00b", "NUL .* remove it"),
    "surrogate": ("a\ud800", "lone surrogate at index 1"),
}
CALLS_WITH_KEY = ("set", "get", "get as of", "delete", "find", "history")


async def ask_with_key(session: MetadataSession, call: str, key: Any) -> Any:
    match call:
        case "set":
            return await session.set_metadata({"good": 1, key: 1})
        case "get":
            return await session.get_metadata(["good", key])
        case "get as of":
            return await session.get_metadata([key], as_of=1)
        case "delete":
            return await session.delete_metadata(["before", key])
        case "find":
            return await session.find_sessions_by_metadata(key, 1)
        case "history":
            return await session.history(key)
    raise AssertionError(call)


@pytest.mark.parametrize(
    ("call", "key", "message"),
    [
        pytest.param(call, key, message, id=f"{call}-{name}")
        for name, (key, message) in BAD_KEYS.items()
        for call in CALLS_WITH_KEY
        if (call, name) != ("history", "none")  # which asks for the history of all keys
    ],
)
async def test_a_bad_key_is_refused(
    refusing: MetadataSession, call: str, key: Any, message: str
) -> None:
    with pytest.raises(InvalidKey, match=message) as caught:
        await ask_with_key(refusing, call, key)
    assert caught.value.key == key
    assert isinstance(caught.value, ValueError)


async def test_a_refused_key_changes_nothing(session: MetadataSession) -> None:
    for key, _ in BAD_KEYS.values():
        for call in ("set", "delete"):
            with pytest.raises(InvalidKey):
                await ask_with_key(session, call, key)
    await assert_untouched(session)


async def test_the_error_does_not_repeat_a_huge_key(refusing: MetadataSession) -> None:
    with pytest.raises(InvalidKey) as caught:
        await refusing.get_metadata(["k" * 100_000])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("call", ["get_metadata", "delete_metadata"])
async def test_one_string_is_no_list_of_keys(refusing: MetadataSession, call: str) -> None:
    with pytest.raises(InvalidInput, match=r"give a list: \['title'\]"):
        await getattr(refusing, call)("title")


@pytest.mark.parametrize("metadata", [["a"], "a", None, 1])
async def test_metadata_is_a_mapping(refusing: MetadataSession, metadata: Any) -> None:
    with pytest.raises(InvalidInput, match="give a dict"):
        await refusing.set_metadata(metadata)


# --- Values -------------------------------------------------------------------------------------

BAD_VALUES: dict[str, tuple[Any, str, str]] = {
    "nan": (float("nan"), "k", "nan is not a JSON number; use None"),
    "infinity": ({"a": [1.0, float("inf")]}, "k.a[1]", "use None or a string"),
    "minus infinity": (float("-inf"), "k", "not a JSON number"),
    "65 bits": (2**64, "k", "65 bits, over 64; store it as a string"),
    "negative beyond 64 bits": ([-(2**63) - 1], "k[0]", "over 64; store it as a string"),
    "huge integer": (10**5000, "k", "over 64"),
    "65 levels": (nested(65), "k.n[0]", "deeper than 64 levels; flatten it"),
    "circular": (circular(), "k[0][0]", "deeper than 64 levels"),
    "datetime": ({"when": datetime.now(UTC)}, "k.when", r"store value.isoformat\(\) instead"),
    "date": (date(2026, 1, 1), "k", r"a date is not JSON; store value.isoformat\(\)"),
    "set": ({"tags": [{1}]}, "k.tags[0]", r"a set is not JSON; store sorted\(value\)"),
    "tuple": ((1, 2), "k", r"store list\(value\)"),
    "bytes": (b"x", "k", "base64"),
    "decimal": (Decimal("1.5"), "k", r"store str\(value\)"),
    "uuid": (uuid.uuid4(), "k", r"store str\(value\)"),
    "model": ([Model()], "k[0]", r"store value.model_dump\(mode='json'\)"),
    "object": (object(), "k", "a object is not JSON"),
    "nul": (["ok", "a\x00"], "k[1]", "NUL .* remove it"),
    "surrogate": ("\udc00", "k", "lone surrogate at index 0"),
    "integer name": ({"a": {1: 2}}, "k.a", "object key 1 is a int"),
    "enum name": ({Colour.RED: 2}, "k", "JSON keys are strings"),
    "nul in a name": ({"a\x00": 1}, "k", "an object key contains NUL"),
    "surrogate in a name": ({"\ud800": 1}, "k", "an object key contains a lone surrogate"),
}
bad_values = pytest.mark.parametrize(
    ("value", "path", "message"), BAD_VALUES.values(), ids=list(BAD_VALUES)
)


@bad_values
@pytest.mark.parametrize("call", ["set", "find"])
async def test_a_bad_value_is_refused(
    refusing: MetadataSession, call: str, value: Any, path: str, message: str
) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "set": lambda: refusing.set_metadata({"good": 1, "k": value}),
        "find": lambda: refusing.find_sessions_by_metadata("k", value),
    }
    with pytest.raises(InvalidValue, match=message) as caught:
        await calls[call]()
    assert caught.value.path.startswith(path)
    assert caught.value.path in str(caught.value)
    assert isinstance(caught.value, ValueError)


async def test_a_refused_value_changes_nothing(session: MetadataSession) -> None:
    for value, _, _ in BAD_VALUES.values():
        with pytest.raises(InvalidValue):
            await session.set_metadata({"before": 2, "k": value})
    await assert_untouched(session)


@pytest.mark.parametrize(
    ("value", "size"),
    [("x" * 11, 11), ("é" * 6, 12), ('"' * 6, 12), ([1, 2, 3, 4, 5], 11), ({"abc": 1.25}, 12)],
)
async def test_a_value_over_the_limit_is_refused(
    unreachable: AsyncEngine, value: Any, size: int
) -> None:
    session = MetadataSession("alpha", engine=unreachable, max_value_bytes=10)
    with pytest.raises(ValueTooLarge, match=r"limit of 10; .* larger max_value_bytes") as caught:
        await session.set_metadata({"k": value})
    assert (caught.value.path, caught.value.size, caught.value.limit) == ("k", size, 10)


async def test_the_data_of_an_event_is_limited_in_bytes(unreachable: AsyncEngine) -> None:
    store = MetadataStore(unreachable, max_value_bytes=20)
    with pytest.raises(ValueTooLarge) as caught:
        await store.append("s", NewEvent("noted", {"k": "é" * 10}))
    assert (caught.value.path, caught.value.size, caught.value.limit) == ("data", 28, 20)


TEXT: Any = "1"
BAD_ARGUMENTS: dict[str, tuple[Callable[[MetadataStore], Any], str]] = {
    "subscription": (lambda store: anext(store.subscribe("Bad Name")), "subscription 'Bad Name'"),
    "batch as text": (lambda store: backfill_conversations(store, batch_size=TEXT), "batch_size"),
    "no batch": (lambda store: backfill_conversations(store, batch_size=0), "batch_size is 0"),
    "timeout as text": (lambda store: store.catch_up(timeout=TEXT), "timeout '1'"),
    "negative timeout": (lambda store: store.wait_for(1, "users", timeout=-1), "timeout -1"),
}


@pytest.mark.parametrize(("call", "message"), BAD_ARGUMENTS.values(), ids=list(BAD_ARGUMENTS))
async def test_a_bad_argument_is_called_by_its_name(
    unreachable: AsyncEngine, call: Callable[[MetadataStore], Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await call(MetadataStore(unreachable, structured_metadata=True))


async def test_the_limit_is_one_mebibyte_unless_given(session: MetadataSession) -> None:
    with pytest.raises(ValueTooLarge) as caught:
        await session.set_metadata({"before": "x" * (2**20 + 1)})
    assert caught.value.limit == 2**20
    await assert_untouched(session)
    await session.set_metadata({"before": "x" * 2**20})


# --- Names, options and points ------------------------------------------------------------------

BAD_NAMES: dict[str, tuple[Any, str]] = {
    "empty": ("", "is empty"),
    "integer": (1, "give a string"),
    "256 bytes": ("x" * 256, "over 255 bytes"),
    "nul": ("a\x00", "NUL"),
    "surrogate": ("\ud800", "lone surrogate"),
}
bad_names = pytest.mark.parametrize(("name", "message"), BAD_NAMES.values(), ids=list(BAD_NAMES))


@bad_names
async def test_a_bad_session_id_is_refused(
    unreachable: AsyncEngine, name: Any, message: str
) -> None:
    store = MetadataStore(unreachable)
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.append(name, NewEvent("noted")),
        lambda: anext(store.events(stream=name)),
        lambda: store.find_sessions_by_metadata("k", 1, after=name),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidIdentifier, match=message):
            await attempt()
    with pytest.raises(InvalidIdentifier, match=message) as caught:
        MetadataSession(name, engine=unreachable)
    assert (caught.value.what, caught.value.value) == ("session id", name)


@bad_names
async def test_a_bad_actor_is_refused(refusing: MetadataSession, name: Any, message: str) -> None:
    with pytest.raises(InvalidIdentifier, match=message) as caught:
        await refusing.set_metadata({"k": 1}, actor=name)
    assert (caught.value.what, caught.value.value) == ("actor", name)
    with pytest.raises(InvalidIdentifier, match=message), acting_as(name):
        pass


@pytest.mark.parametrize(
    "name", ["", "1st", "a-b", "a b", "a;b", 'a"b', "a`b", "a.b", "é", "x" * 64, None]
)
@pytest.mark.parametrize(
    "keyword",
    ["sessions_table", "messages_table", "session_metadata_table", "events_table", "streams_table"],
)
def test_a_bad_table_name_is_refused(keyword: str, name: Any) -> None:
    engine = create_async_engine(URLS["sqlite"])
    with pytest.raises(InvalidIdentifier, match="45 ASCII letters, digits and underscores"):
        MetadataSession("alpha", engine=engine, **{keyword: name})
    with pytest.raises(InvalidIdentifier, match="table name"):
        MetadataStore(engine, **{keyword: name})


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "event id": ({"event_id": "not-a-uuid"}, r"not a UUID; make .*new_event_id\(\)"),
    "event id of another type": ({"event_id": 7}, "is not a UUID"),
    "negative version": ({"expected_version": -1}, "give 0, 1, 2"),
    "version as text": ({"expected_version": "1"}, "is no version"),
    "version as truth": ({"expected_version": True}, "is no version"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=list(BAD_OPTIONS))
@pytest.mark.parametrize(
    "write",
    [
        lambda session, **options: session.set_metadata({"k": 1}, **options),
        lambda session, **options: session.delete_metadata(["k"], **options),
        lambda session, **options: session.clear_session(**options),
        lambda session, **options: session.add_items([{"role": "user"}], **options),
        lambda session, **options: session.pop_item(**options),
    ],
    ids=["set", "delete", "clear", "add", "pop"],
)
async def test_a_bad_option_is_refused_by_every_write(
    refusing: MetadataSession,
    write: Callable[..., Awaitable[Any]],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await write(refusing, **options)
    with pytest.raises(TypeError, match="reason"):
        await write(refusing, reason="there is no such option")


async def test_context_that_is_not_json_is_refused(refusing: MetadataSession) -> None:
    isoformat = pytest.raises(InvalidValue, match="isoformat")
    with acting_as("bob", when=datetime.now(UTC)), isoformat as caught:
        await refusing.set_metadata({"k": 1})
    assert caught.value.path == "context.when"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (datetime(2026, 1, 1), r"no time zone.*datetime.now\(UTC\)"),  # noqa: DTZ001
        (-1, "give a version"),
        (True, "give a version"),
        ("2026-01-01", "give a version"),
        (1.0, "an aware datetime"),
        (2**63, "not a point in history"),
    ],
)
async def test_a_bad_point_in_history_is_refused(
    refusing: MetadataSession, point: Any, message: str
) -> None:
    with pytest.raises(InvalidPoint, match=message):
        await refusing.get_metadata(as_of=point)
    with pytest.raises(InvalidPoint, match=message):
        await refusing.diff(0, point)
    with pytest.raises(InvalidPoint, match=message):
        await refusing.diff(point, 0)


@pytest.mark.parametrize("number", [-1, True, "1", 1.5, 2**63])
async def test_a_bad_count_is_refused(refusing: MetadataSession, number: Any) -> None:
    store = MetadataStore(refusing.engine)
    alices = store.session("alpha", user_id="alice")
    attempts: list[Callable[[], Awaitable[Any]]] = [
        *(partial(alices.get_sessions_for_user, user, number) for user in ("alice", "bob")),
        *(partial(alices.get_sessions_for_user, user, 1, number) for user in ("alice", "bob")),
        lambda: refusing.find_sessions_by_metadata("k", 1, limit=number),
        lambda: refusing.history(limit=number),
        lambda: refusing.history(after=number),
        lambda: anext(store.events(number)),
        lambda: anext(store.events(until=number)),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidInput, match="give a whole number, 0 or more"):
            await attempt()


# --- Items --------------------------------------------------------------------------------------

NOW = datetime.now(UTC)
BAD_ITEMS: dict[str, tuple[Any, str]] = {
    "text": ("Hello", "items is a str; give a list of dicts"),
    "one dict": ({"role": "user"}, "items is a dict"),
    "number": (7, "items is a int"),
    "texts": (["Hello"], r"items\[0\] is a str; give a dict, such as"),
    "none": ([{"role": "user"}, None], r"items\[1\] is a NoneType"),
    "datetime": (
        [{}, {}, {"content": [{"when": NOW}]}],
        r"items\[2\]\.content\[0\]\.when: a datetime .* store value.isoformat\(\)",
    ),
    "bytes": ([{"content": b"x"}], r"items\[0\]\.content: a bytes .* a base64 string"),
    "set": ([{"content": ({1},)}], r"items\[0\]\.content\[0\]: a set .* sorted\(value\)"),
    "model": ([{"content": Model()}], r"items\[0\]\.content: .*model_dump"),
    "tuple as a name": ([{"a": {(1, 2): 3}}], r"items\[0\]\.a: the object key \(1, 2\)"),
    "too deep": ([{"a": nested(100_000)}], r"items\[0\]: nested too deep"),
    "within itself": ([{"a": circular()}], r"items\[0\]: "),
}


@pytest.mark.parametrize(("items", "message"), BAD_ITEMS.values(), ids=list(BAD_ITEMS))
async def test_items_that_are_no_json_are_refused(
    unreachable: AsyncEngine, items: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await MetadataSession("alpha", engine=unreachable).add_items(items)


async def test_what_upstream_takes_is_taken(session: MetadataSession) -> None:
    """Its `json.dumps` takes tuples, and numbers as names."""
    item: Any = {"role": "user", "content": ("a", "b"), 7: None}
    await session.add_items([item])
    assert await session.get_items() == [{"role": "user", "content": ["a", "b"], "7": None}]


# --- Events of the app's own --------------------------------------------------------------------

BAD_EVENTS: dict[str, tuple[NewEvent, type[InvalidInput], str]] = {
    "built in": (NewEvent("metadata_set"), InvalidIdentifier, "use the method of the session"),
    "upper case": (NewEvent("Noted"), InvalidIdentifier, "lower-case letters"),
    "empty type": (NewEvent(""), InvalidIdentifier, "event type"),
    "long type": (NewEvent("x" * 65), InvalidIdentifier, "up to 64"),
    "bad data": (NewEvent("noted", {"a": {1, 2}}), InvalidValue, "data.a: a set is not JSON"),
    "bad context": (NewEvent("noted", context={"a": b""}), InvalidValue, "context.a"),
    "bad id": (NewEvent("noted", event_id="1"), InvalidIdentifier, "event id '1' is not a UUID"),
    "bad actor": (NewEvent("noted", actor=""), InvalidIdentifier, "actor '' is empty"),
}


@pytest.mark.parametrize(("new", "error", "message"), BAD_EVENTS.values(), ids=list(BAD_EVENTS))
async def test_a_bad_event_is_refused(
    unreachable: AsyncEngine, new: NewEvent, error: type[InvalidInput], message: str
) -> None:
    with pytest.raises(error, match=message):
        await MetadataStore(unreachable).append("alpha", new)


async def test_a_string_is_no_list_of_types(unreachable: AsyncEngine) -> None:
    with pytest.raises(InvalidInput, match=r"give a list: \['noted'\]"):
        await anext(MetadataStore(unreachable).events(types="noted"))


# --- Missing tables -----------------------------------------------------------------------------


CALLS: dict[str, Callable[[MetadataSession], Awaitable[Any]]] = {
    "set": lambda session: session.set_metadata({"k": 1}),
    "set once": lambda session: session.set_metadata({"k": 1}, event_id=new_event_id()),
    "get": lambda session: session.get_metadata(),
    "as of": lambda session: session.get_metadata(as_of=1),
    "delete": lambda session: session.delete_metadata(),
    "find": lambda session: session.find_sessions_by_metadata("k", 1),
    "history": lambda session: session.history(),
    "add": lambda session: session.add_items([{"role": "user", "content": "x"}]),
    "items": lambda session: session.get_items(),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "events": lambda session: anext(MetadataStore(session.engine).events()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_a_missing_table_says_what_creates_it(
    engine: AsyncEngine, call: Callable[[MetadataSession], Awaitable[Any]]
) -> None:
    with pytest.raises(
        TablesMissing, match=r"store.create_tables\(\).*create_tables=True"
    ) as error:
        await call(MetadataSession("alpha", engine=engine))
    assert "agent_" in str(error.value)
    assert isinstance(error.value, EventMetaError)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE agent_streams DROP COLUMN recorded_at",
        "ALTER TABLE agent_sessions_metadata DROP COLUMN updated_at",
    ],
)
async def test_a_missing_column_says_what_adds_it(engine: AsyncEngine, change: str) -> None:
    """As in a database that an older version has made."""
    session = MetadataSession("alpha", engine=engine, create_tables=True)
    await session.set_metadata({"k": 1})
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP VIEW IF EXISTS agent_metadata_changes")
        await connection.exec_driver_sql(change)
    with pytest.raises(TablesMissing, match=r"store.create_tables\(\).*store.schema_sql\(\)"):
        await session.set_metadata({"k": 2})
