"""The log as Arrow."""

import json
import sys
from contextlib import aclosing
from typing import Any

import pyarrow as pa
import pytest

from eventmeta import ExportProgress, InvalidInput, MetadataStore, MissingExtra, NewEvent
from eventmeta.log import arrow

ODD = ["plain", "", "comma, \"quote\", 'it'", "new\nline", "tab\tand\x01start", "später 🌍", "NULL"]


async def fill(store: MetadataStore) -> None:
    for number, text in enumerate(ODD):
        session = store.session(f"s{number % 3}")
        await session.set_metadata({"title": text, "n": number}, actor=text or None)
        await store.append(f"s{number % 3}", NewEvent("noted", {"text": text}, context={"a": text}))


async def expected(store: MetadataStore, **part: Any) -> list[tuple[object, ...]]:
    return [
        (
            *(event.position, event.stream_type, event.stream_id, event.version, event.event_id),
            *(event.type, dict(event.data), event.actor, dict(event.context), event.recorded_at),
        )
        async for event in store.events(**part)
    ]


def select_rows(table: pa.Table) -> list[tuple[object, ...]]:
    """With the JSON read, and a context that is not there as an empty one, as events have it."""
    rows = []
    for row in table.to_pylist():
        row["data"] = json.loads(row["data"])
        row["context"] = json.loads(row["context"] or "{}")
        rows.append(tuple(row.values()))
    return rows


@pytest.mark.parametrize("window", [1, 5, 50_000])
async def test_every_event_is_there_exactly(
    store: MetadataStore, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "WINDOW", window)
    await fill(store)
    table = await store.to_arrow()
    assert table.schema == arrow.arrow_schema()
    assert select_rows(table) == await expected(store)
    table.validate(full=True)


async def test_a_part_of_the_log(store: MetadataStore) -> None:
    await fill(store)
    parts: list[dict[str, Any]] = [
        {"after": 4},
        {"until": 7},
        {"after": 3, "until": 9},
        {"types": ["noted"]},
        {"stream": "s1"},
        {"types": []},
        {"stream": "nobody"},
    ]
    for part in parts:
        assert select_rows(await store.to_arrow(**part)) == await expected(store, **part)


async def test_an_empty_log_has_the_same_columns(store: MetadataStore) -> None:
    table = await store.to_arrow()
    assert (table.num_rows, table.schema) == (0, arrow.arrow_schema())


async def test_it_comes_in_batches_and_tells_how_far_it_is(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "WINDOW", 4)
    await fill(store)
    told: list[ExportProgress] = []
    sizes = [batch.num_rows async for batch in store.arrow_batches(progress=told.append)]
    total, end = len(await expected(store)), await store.horizon()
    assert sum(sizes) == total
    assert max(sizes) <= 4
    assert [each.position for each in told] == sorted({each.position for each in told})
    assert told[-1] == ExportProgress(end, end, total)


async def test_who_stops_early_leaves_nothing_behind(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's fixture fails if a connection stays checked out."""
    monkeypatch.setattr(arrow, "WINDOW", 2)
    await fill(store)
    async with aclosing(store.arrow_batches()) as batches:
        async for batch in batches:
            assert batch.num_rows == 2
            break


async def test_without_pyarrow_it_says_what_to_install(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"eventmeta\[analytics\]"):
        await store.to_arrow()


async def test_bad_input_is_refused(store: MetadataStore) -> None:
    for part in ({"after": -1}, {"until": "x"}, {"types": "noted"}):
        with pytest.raises(InvalidInput):
            await store.to_arrow(**part)


async def test_windows_are_smaller_where_payloads_are_long(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is long, memory is enough; and a single event is read however long it is."""
    monkeypatch.setattr(arrow, "WINDOW_BYTES", 10_000)
    lengths = [10] * 20 + [6_000] * 4 + [30_000] + [10] * 5
    for length in lengths:
        await store.append("s", NewEvent("noted", {"text": "x" * length}))
    batches = [batch async for batch in store.arrow_batches()]
    payloads = [[str(data) for data in batch.column("data").to_pylist()] for batch in batches]
    assert [len(json.loads(text)["text"]) for each in payloads for text in each] == lengths
    assert all(len(each) == 1 or sum(map(len, each)) < 20_000 for each in payloads)
    assert len(payloads) > 4
