"""What goes through the whole log: rebuild, catch-up and export, beside the least that can be done.

All of it in one run on one log, which the store itself has written. The bare statements are what
the database needs for the same rows: the projection's own Select into an empty table like the
read model, and a copy of the rows that are there.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table as Shown
from sqlalchemy import MetaData, Table, delete, insert, select
from sqlalchemy.engine import make_url

from benchmarks.backends import opened
from benchmarks.peers.ours import COPY
from benchmarks.scenarios.base import metadata
from eventmeta import MetadataStore, progress_bar
from eventmeta.dialects.statement import Program
from eventmeta.projector.shadow_tables import ShadowTables
from eventmeta.projector.target import live_target
from projections import METADATA_EVENTS, metadata_projection

EVENTS_A_SESSION = 10
CALLS_AT_ONCE = 512
ROUNDS = 3
"""How often what is compared with each other takes turns; the median counts."""

SAMPLE = 20_000
"""Events for what takes too long for all."""


async def measure(backend: str, events: int, console: Console) -> None:
    """Fill a log with so many events, and print what was found."""
    async with opened(backend) as place, place.databases(1, 0.0) as (url,):
        console.rule(f"{place.server}: {events:,} events")
        async with MetadataStore.from_url(url) as store:
            store.register(replace(metadata_projection(MetaData(), COPY), name=COPY))
            await store.create_tables()
            await fill(store, 0, events)
            with progress_bar() as bar:
                rates = await _rates(store, url, events, bar)
    shown = Shown(title="Events per second", title_justify="left")
    for title in ("what", "rate", "seconds"):
        shown.add_column(title, justify="left" if title == "what" else "right")
    for what, (count, seconds) in rates.items():
        shown.add_row(what, f"{count / seconds:,.0f}", f"{seconds:.2f}")
    console.print(shown, highlight=False)
    for line in _ratios({what: count / seconds for what, (count, seconds) in rates.items()}):
        console.print(line, highlight=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"Peak memory of this process: {peak:,.0f} MB", highlight=False)


def _ratios(rate: dict[str, float]) -> list[str]:
    pairs = [
        ("rebuild", "bare INSERT … SELECT of the fold"),
        ("rebuild, not compared", "bare INSERT … SELECT of the fold"),
        ("rebuild, not compared", "bare INSERT … SELECT of the rows"),
        ("rebuild", "row by row in Python"),
        ("export to Arrow", "ADBC's bare read"),
    ]
    return [f"{a} / {b}: {rate[a] / rate[b]:.2f}×" for a, b in pairs if b in rate]


async def fill(store: MetadataStore, first: int, last: int) -> None:
    """Set metadata, from the ``first`` time to the ``last``, in sessions that take turns."""
    sessions = max(last // EVENTS_A_SESSION, 1)

    async def write(n: int) -> None:
        session = store.session(f"session-{n * 7919 % sessions:07}")
        await session.set_metadata(metadata(session.session_id, n))

    for start in range(first, last, CALLS_AT_ONCE):
        stop = min(start + CALLS_AT_ONCE, last)
        await asyncio.gather(*(write(n) for n in range(start, stop)))


async def _rates(
    store: MetadataStore, url: str, events: int, bar: Any
) -> dict[str, tuple[int, float]]:
    sample = min(SAMPLE, events)
    rebuilds = {
        "rebuild": lambda: store.rebuild("metadata", progress=bar),
        "rebuild, not compared": lambda: store.rebuild("metadata", compare=False),
        "bare INSERT … SELECT of the fold": lambda: _insert(store, fold=True),
        "bare INSERT … SELECT of the rows": lambda: _insert(store, fold=False),
    }
    found = await _timed(events, rebuilds)
    found |= await _timed(
        sample, {"row by row in Python": lambda: _row_by_row(store, sample)}, rounds=1
    )
    await store.catch_up()
    await fill(store, events, events + sample)
    found |= await _timed(sample, {"catch-up": store.catch_up}, rounds=1)
    exports = {"export to Arrow": lambda: _export(store, bar)}
    if adbc := _adbc(url, store):
        exports["ADBC's bare read"] = lambda: asyncio.to_thread(adbc)
    return found | await _timed(events + sample, exports)


async def _timed(
    count: int, works: Mapping[str, Callable[[], Awaitable[Any]]], rounds: int = ROUNDS
) -> dict[str, tuple[int, float]]:
    """How long each takes for ``count`` events; the median, as they take turns."""
    seconds: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(rounds):
        for what, work in works.items():
            start = time.perf_counter()
            await work()
            seconds[what].append(time.perf_counter() - start)
    return {what: (count, median(taken)) for what, taken in seconds.items()}


async def _insert(store: MetadataStore, *, fold: bool) -> None:
    """All rows of the read model into an empty table like it, by one statement; its indexes too."""
    database = store.log.database
    projection = database.tables.session_metadata
    shadow = ShadowTables.of([projection.table], database.dialect, "_bare")
    target = live_target(projection, database.tables, database.dialect)
    rows = target.rows(target.relation()) if fold else select(*projection.table.columns)
    names = [column.name for column in projection.table.columns]
    statement = database.dialect.compile(insert(shadow.tables[0]).from_select(names, rows))

    def program() -> Program[None]:
        yield from shadow.create()
        yield statement()
        yield from shadow.finish()
        yield from shadow.drop()

    await database.fold(program)


async def _row_by_row(store: MetadataStore, count: int) -> None:
    """As an app would fold: a statement for each change, a commit for a thousand events."""
    table = store.log.registry[COPY].projection.tables[0]
    page: list[Any] = []
    async for event in store.events(types=sorted(METADATA_EVENTS)):
        page.append(event)
        if len(page) == 1_000 or len(page) == count:
            await _fold_page(store, table, page)
            count -= len(page)
            page = []
        if count <= 0:
            break
    async with store.engine.begin() as connection:
        await connection.execute(delete(table))


async def _fold_page(store: MetadataStore, table: Table, page: list[Any]) -> None:
    async with store.engine.begin() as connection:
        for event in page:
            for key, value, *_ in event.data["changes"]:
                same = (table.c.session_id == event.stream_id, table.c.key == key)
                changed = await connection.execute(
                    table.update().where(*same).values(value=value, updated_at=event.recorded_at)
                )
                if not changed.rowcount:
                    row = {"session_id": event.stream_id, "key": key, "value": value}
                    times = dict.fromkeys(("created_at", "updated_at"), event.recorded_at)
                    await connection.execute(insert(table), row | times | {"indexed_value": ""})


async def _export(store: MetadataStore, bar: Any) -> None:
    async for _ in store.arrow_batches(progress=bar):
        pass


def _adbc(url: str, store: MetadataStore) -> Callable[[], None] | None:
    """What reads the log through ADBC, if that is installed and there is a driver."""
    if make_url(url).get_backend_name() != "postgresql":
        return None
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        return None
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    def read() -> None:
        with dbapi.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {store.log.database.tables.events.name}")
            for _ in cursor.fetch_record_batch():
                pass

    return read
