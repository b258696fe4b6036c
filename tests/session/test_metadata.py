"""Session metadata: set, get, delete and find mean the same on every backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import MISSING, MetadataSession, MetadataStore
from tests.support.json_values import equal, exact


def nested(levels: int) -> Any:
    """A list in a list in a list …"""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


MIB = 2**20
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "one": 1,
    "one as text": "1",
    "one as float": 1.0,
    "zero": 0,
    "minus zero": -0.0,
    "smallest integer": -(2**63),
    "largest signed integer": 2**63 - 1,
    "largest integer": 2**64 - 1,
    "beyond what a double counts": 2**53 + 1,
    "as far as a double counts": float(2**53),
    "largest integer's power": float(2**63),
    "shortest of many digits": 0.1 + 0.2,
    "fraction": 0.3,
    "17 digits": 123456789.12345678,
    "large whole float": 1e22,
    "largest float": 1.7976931348623157e308,
    "smallest float": 5e-324,
    "empty text": "",
    "text of null": "null",
    "text of true": "true",
    "lower case": "title",
    "upper case": "Title",
    "space after": "title ",
    "space before": " title",
    "tab after": "title\t",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "emoji": "🐘👩‍👩‍👧",
    "sharp s": "straße",
    "double s": "strasse",
    "quoted": 'it\'s "so" \\ `so` %s %% ? :name $1 {x}',
    "controls": "\b\n\r\x01\x1f\x7f\u2028",
    "ends of the planes": "\uffff\U0001ffff\U0010ffff",
    "62 bytes": "x" * 62,
    "63 bytes": "x" * 63,
    "300 bytes": "é" * 150,
    "empty list": [],
    "empty object": {},
    "list of null": [None],
    "list of list": [[]],
    "mixed list": [1, "1", True, None, 1.5],
    "mixed list, floats": [1.0, "1", True, None, 1.5],
    "mixed list, other order": ["1", 1, True, None, 1.5],
    "object": {"b": {"x": 1, "y": [2]}, "a": None},
    "object, other order, floats": {"a": None, "b": {"y": [2.0], "x": 1.0}},
    "object without null": {"b": {"x": 1, "y": [2]}},
    "odd names": {"": "", " ": 0, "$.a": [], "É": {"1": 1}},
    "deepest": nested(64),
    "long list, one": [*range(1000), 1],
    "long list, one as float": [*range(1000), 1.0],
    "long list, true": [*range(1000), True],
    "1 MiB": "m" * MIB,
    "1 MiB, other end": "m" * (MIB - 1) + "n",
    "1 MiB of four-byte characters": "🐘" * (MIB // 4),
}

KEYS = [
    "key",
    "Key",
    "key ",
    " key",
    "key\t",
    "k\u00e9y",
    "ke\u0301y",
    "🔑",
    "key.sub",
    "$.key",
    '"key"',
    "'; DROP TABLE agent_events --",
    "%s",
    "k_y",
    "0",
    "\n",
    "k" * 255,
    "K" * 255,
    "🔑" * 63,
]


async def rows(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.scalars(text(query))).all())


async def save_all_values(store: MetadataStore) -> None:
    for name, value in VALUES.items():
        await store.session(name).set_metadata({"value": value})


# --- The input matrix ---------------------------------------------------------------------------


async def test_values_come_back_with_their_exact_types(store: MetadataStore) -> None:
    await save_all_values(store)
    for name, value in VALUES.items():
        found = await store.session(name).get_metadata()
        assert exact(found) == exact({"value": value}), name


async def test_values_come_back_from_one_write_and_from_the_past(session: MetadataSession) -> None:
    await session.set_metadata(VALUES)
    await session.clear_session()
    found = await session.get_metadata(as_of=1)
    assert {name: exact(value) for name, value in found.items()} == {
        name: exact(value) for name, value in VALUES.items()
    }


async def test_values_are_found_by_what_json_calls_equal(store: MetadataStore) -> None:
    await save_all_values(store)
    for name, value in VALUES.items():
        expected = {other for other, stored in VALUES.items() if equal(stored, value)}
        found = await store.find_sessions_by_metadata("value", value)
        assert set(found) == expected, name
        assert len(found) == len(expected)


def test_the_matrix_has_equal_values_of_different_spelling() -> None:
    """The oracle of the test above is not trivial."""
    assert equal(1, 1.0)
    assert equal(VALUES["object"], VALUES["object, other order, floats"])
    assert not equal(1, True)
    assert not equal(VALUES["composed"], VALUES["decomposed"])


async def test_keys_are_told_apart_exactly(store: MetadataStore) -> None:
    session = store.session("alpha")
    await session.set_metadata({key: number for number, key in enumerate(KEYS)})
    assert await session.get_metadata() == {key: number for number, key in enumerate(KEYS)}
    for number, key in enumerate(KEYS):
        assert await session.get_metadata([key]) == {key: number}
        assert await store.find_sessions_by_metadata(key, number) == ["alpha"]
        assert await store.find_sessions_by_metadata(key, number + 1) == []
    kept = dict(enumerate(KEYS))
    for number, key in enumerate(KEYS[:5]):
        await session.delete_metadata([key])
        del kept[number]
        assert await session.get_metadata() == {key: number for number, key in kept.items()}


async def test_session_ids_are_told_apart_exactly(store: MetadataStore) -> None:
    for key in KEYS:
        await store.session(key).set_metadata({"id": key})
    for key in KEYS:
        assert await store.session(key).get_metadata() == {"id": key}
        assert await store.find_sessions_by_metadata("id", key) == [key]
    await store.session("key").clear_session()
    assert [await store.session(key).get_metadata() for key in KEYS[1:]] == [
        {"id": key} for key in KEYS[1:]
    ]


async def test_ten_thousand_keys(session: MetadataSession) -> None:
    many = {f"key {number}": number for number in range(10_000)}
    await session.set_metadata(many)
    assert await session.get_metadata() == many
    assert await session.get_metadata(list(many)[5000:]) == dict(list(many.items())[5000:])
    assert await session.find_sessions_by_metadata("key 9999", 9999) == ["alpha"]
    await session.delete_metadata(list(many)[5000:])
    many = dict(list(many.items())[:5000])
    assert await session.get_metadata() == many
    deleted = await session.delete_metadata()
    assert deleted is not None
    assert sorted(key for key, _ in deleted.data["changes"]) == sorted(many)
    assert await session.get_metadata() == {}


# --- Set ----------------------------------------------------------------------------------------


async def test_set_merges(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1, "b": {"x": 1}})
    await session.set_metadata({"b": {"y": 2}, "c": 3})
    assert await session.get_metadata() == {"a": 1, "b": {"y": 2}, "c": 3}


async def test_set_creates_the_session(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1})
    assert await rows(session.engine, "SELECT session_id FROM agent_sessions") == ["alpha"]


async def test_setting_nothing_does_nothing(store: MetadataStore) -> None:
    assert await store.session("alpha").set_metadata({}) is None
    assert await rows(store.engine, "SELECT session_id FROM agent_sessions") == []
    assert [event async for event in store.events()] == []


async def test_set_returns_what_was_recorded(session: MetadataSession) -> None:
    event = await session.set_metadata({"a": 1})
    assert event is not None
    assert (event.stream_id, event.version, event.type) == ("alpha", 1, "metadata_set")
    assert event.data == {"changes": [["a", "1"]]}


async def test_sessions_do_not_share_metadata(store: MetadataStore) -> None:
    await store.session("alpha").set_metadata({"a": 1})
    await store.session("beta").set_metadata({"a": 2})
    assert await store.session("alpha").get_metadata() == {"a": 1}
    await store.session("alpha").delete_metadata()
    assert await store.session("beta").get_metadata() == {"a": 2}


async def test_metadata_goes_with_clear_session(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1})
    await session.clear_session()
    assert await session.get_metadata() == {}
    assert await session.find_sessions_by_metadata("a", 1) == []


async def test_the_table_may_have_another_name(engine: AsyncEngine) -> None:
    session = MetadataSession(
        "alpha", engine=engine, create_tables=True, session_metadata_table="facts"
    )
    await session.set_metadata({"a": 1})
    assert await session.get_metadata() == {"a": 1}
    assert await rows(engine, "SELECT value FROM facts") == ["1"]


# --- Get ----------------------------------------------------------------------------------------


async def test_get_of_an_unknown_session_is_empty(session: MetadataSession) -> None:
    assert await session.get_metadata() == {}
    assert await session.get_metadata(["a"]) == {"a": None}
    assert await session.get_metadata([]) == {}


async def test_missing_and_null_can_be_told_apart(session: MetadataSession) -> None:
    await session.set_metadata({"null": None})
    assert await session.get_metadata(["null", "missing"]) == {"null": None, "missing": None}
    found = await session.get_metadata(["null", "missing"], default=MISSING)
    assert found == {"null": None, "missing": MISSING}
    assert await session.get_metadata(["null", "x"], default=0, as_of=1) == {"null": None, "x": 0}


async def test_all_keys_come_in_order_and_given_ones_as_given(session: MetadataSession) -> None:
    await session.set_metadata({"b": 1, "a": 2, "B": 3, "é": 4, "z": 5})
    assert list(await session.get_metadata()) == ["B", "a", "b", "z", "é"]
    assert list(await session.get_metadata(["z", "x", "a", "z"])) == ["z", "x", "a"]


# --- Delete -------------------------------------------------------------------------------------


async def test_delete_removes_the_given_keys(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1, "b": 2, "c": 3})
    deleted = await session.delete_metadata(["c", "a", "missing", "a"])
    assert deleted is not None
    assert deleted.data == {"changes": [["a", None], ["c", None]]}
    assert await session.get_metadata() == {"b": 2}


async def test_delete_removes_all(session: MetadataSession) -> None:
    await session.set_metadata({"b": None, "a": 2})
    deleted = await session.delete_metadata()
    assert deleted is not None
    assert deleted.data == {"changes": [["a", None], ["b", None]]}
    assert await session.get_metadata() == {}
    assert await rows(session.engine, "SELECT session_id FROM agent_sessions") == ["alpha"]


@pytest.mark.parametrize("keys", [["missing"], [], None])
async def test_deleting_nothing_records_nothing(
    session: MetadataSession, keys: list[str] | None
) -> None:
    if keys is not None:
        await session.set_metadata({"a": 1})
    assert await session.delete_metadata(keys) is None
    assert len(await session.history()) == (keys is not None)


async def test_a_deleted_key_can_be_set_again(session: MetadataSession) -> None:
    await session.set_metadata({"a": 1})
    await session.delete_metadata(["a"])
    await session.set_metadata({"a": "again"})
    assert await session.get_metadata() == {"a": "again"}
    assert await session.find_sessions_by_metadata("a", 1) == []


# --- Find ---------------------------------------------------------------------------------------


async def test_find_sees_all_sessions_and_only_the_current_value(store: MetadataStore) -> None:
    for name in ("alpha", "beta", "gamma"):
        await store.session(name).set_metadata({"state": "open", "other": "closed"})
    await store.session("beta").set_metadata({"state": "closed"})
    await store.session("gamma").delete_metadata(["state"])
    assert await store.find_sessions_by_metadata("state", "open") == ["alpha"]
    assert await store.session("gamma").find_sessions_by_metadata("state", "closed") == ["beta"]


async def test_null_is_found_and_missing_is_not(store: MetadataStore) -> None:
    await store.session("alpha").set_metadata({"a": None})
    await store.session("beta").set_metadata({"b": None})
    assert await store.find_sessions_by_metadata("a", None) == ["alpha"]


async def test_find_in_pages(store: MetadataStore) -> None:
    names = {f"{letter}{number}" for letter in "aAzéÉ" for number in range(21)}
    for name in sorted(names):
        await store.session(name).set_metadata({"state": "open"})
    everything = await store.find_sessions_by_metadata("state", "open", limit=None)
    assert len(everything) == len(names) == 105
    assert set(everything) == names
    assert await store.find_sessions_by_metadata("state", "open") == everything[:100]
    assert await store.find_sessions_by_metadata("state", "open", 0) == []
    pages, after = [], None
    while page := await store.find_sessions_by_metadata("state", "open", limit=10, after=after):
        pages.append(page)
        after = page[-1]
    assert [len(page) for page in pages] == [10] * 10 + [5]
    assert [name for page in pages for name in page] == everything
    rest = await store.find_sessions_by_metadata("state", "open", limit=None, after=everything[49])
    assert rest == everything[50:]


async def test_a_lone_read_takes_no_task_and_leaves_the_next_ones_be(store: MetadataStore) -> None:
    """Those that come meanwhile are read, also when it is cancelled."""
    sessions = [store.session(f"s{n}") for n in range(5)]
    for n, session in enumerate(sessions):
        await session.set_metadata({"n": n})
    for _ in range(2):  # whoever comes after a batch of several waits for others
        await sessions[0].get_metadata()
    before = asyncio.all_tasks()
    lone = asyncio.create_task(sessions[0].get_metadata(["n"]))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before | {lone}
    others = asyncio.gather(*(session.get_metadata(["n"]) for session in sessions[1:]))
    await asyncio.sleep(0)
    lone.cancel()
    assert await others == [{"n": n} for n in range(1, 5)]
    assert await asyncio.gather(*(session.get_metadata() for session in sessions)) == [
        {"n": n} for n in range(5)
    ]
