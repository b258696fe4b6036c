"""The log as Arrow: batches of columns for analytics, in bounded memory."""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ColumnElement, Select, bindparam, func, select

from eventmeta.core.errors import MissingExtra
from eventmeta.core.events import StreamKey
from eventmeta.dialects.statement import Row
from eventmeta.log.event_log import EventLog
from projections import EVENT_COLUMNS
from projections.types import BigInt

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW = 50_000
"""The largest number of positions that one query reads."""

WINDOW_BYTES = 16 * 2**20
"""The largest size of the payloads that one query reads, in bytes; an approximate limit."""


@dataclass(frozen=True)
class ExportProgress:
    """The progress of an export.

    Attributes:
        position: The position up to which the log is exported.
        until: The position at which the export will end.
        events: How many events are exported.
    """

    position: int
    until: int
    events: int


def arrow_schema() -> pa.Schema:
    """Return the Arrow schema of the log; ``data`` and ``context`` are JSON text.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    arrow = _pyarrow()
    numbers = {"position", "version"}
    kinds = {name: arrow.int64() if name in numbers else arrow.string() for name in EVENT_COLUMNS}
    kinds["recorded_at"] = arrow.timestamp("us", tz="UTC")
    nullable = {"actor", "context"}
    fields = [arrow.field(name, kind, name in nullable) for name, kind in kinds.items()]
    return cast("pa.Schema", arrow.schema(fields))


@dataclass(frozen=True)
class ArrowExport:
    """An export of a part of the log.

    Attributes:
        log: The log.
        after: The position of the last event before the part.
        until: The last position of the part, at most the horizon; None for the horizon.
        types: Only events of these types.
        stream: Only events of this stream.
        progress: Called after each batch with the progress.
    """

    log: EventLog
    after: int = 0
    until: int | None = None
    types: Collection[str] | None = None
    stream: StreamKey | None = None
    progress: Callable[[ExportProgress], Any] | None = None

    async def batches(self) -> AsyncGenerator[pa.RecordBatch]:
        """Yield the batches in the order of the log. The next are read while one is processed."""
        end = await self.log.horizon()
        if self.until is not None:
            end = min(end, self.until)
        start, events = self.after, 0
        reading: deque[tuple[int, asyncio.Task[pa.RecordBatch | None]]] = deque()

        async def read_ahead() -> None:
            nonlocal start
            while start < end and len(reading) < self.log.database.dialect.exports_at_once:
                stop = await self._stop(start, end)
                reading.append((stop, asyncio.create_task(self._window(start, stop))))
                start = stop

        try:
            await read_ahead()
            while reading:
                position, window = reading[0]
                batch = await window
                reading.popleft()
                await read_ahead()
                if batch is not None:
                    events += batch.num_rows
                    yield batch
                if self.progress is not None:
                    self.progress(ExportProgress(position, end, events))
        finally:
            for _, window in reading:
                window.cancel()
            await asyncio.gather(*(window for _, window in reading), return_exceptions=True)

    async def _stop(self, start: int, end: int) -> int:
        """Return where the window from ``start`` has to end so that it fits in memory."""
        database = self.log.database
        log, dialect = database.tables.events.c, database.dialect
        size = dialect.compile(self._query(func.sum(dialect.size(log.data))))
        stop = min(start + WINDOW, end)
        while True:
            ((found,),) = await self.log.database.fetch(size(after=start, until=stop))
            too_large = int(found or 0) // WINDOW_BYTES
            if not too_large or stop - start == 1:
                return stop
            stop = start + max((stop - start) // (too_large + 1), 1)

    async def _window(self, after: int, until: int) -> pa.RecordBatch | None:
        """Return the events between two positions as a batch; None if there are none."""
        bounds = {"after": after, "until": until}
        database, limits = self.log.database, self.log.database.limits.long
        log, dialect = database.tables.events.c, database.dialect
        columns = [dialect.plain(log[name]).label(name) for name in EVENT_COLUMNS]
        query = dialect.compile(self._query(*columns).order_by(log.position))(**bounds)
        text = await database.run(lambda: dialect.export(query), limits)
        if text is not None:
            return await asyncio.to_thread(_parsed, text) if text else None
        (rows,) = await database.run(lambda: dialect.read([query]), limits)
        return await asyncio.to_thread(_built, rows) if rows else None

    def _query(self, *columns: ColumnElement[Any]) -> Select[Any]:
        """Return the query for events between two positions: ``after``, ``until`` → ``columns``."""
        log = self.log.database.tables.events.c
        return select(*columns).where(
            log.position > bindparam("after", type_=BigInt),
            log.position <= bindparam("until", type_=BigInt),
            *self.log.conditions(self.types, self.stream),
        )


def _parsed(text: bytes) -> pa.RecordBatch:
    """Return a batch made from CSV, in which NULL is an empty field without quotes.

    Other fields are quoted only if they have to be.
    """
    from pyarrow import csv

    schema: Any = arrow_schema()
    at = schema.get_field_index("recorded_at")
    naive: Any = schema.set(at, schema.field(at).with_type(_pyarrow().timestamp("us")))
    table = csv.read_csv(
        io.BytesIO(text),
        csv.ReadOptions(column_names=naive.names, block_size=max(len(text), 1)),
        csv.ParseOptions(quote_char="\x01", newlines_in_values=True),
        csv.ConvertOptions(
            column_types={field.name: field.type for field in naive},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    return table.cast(schema).combine_chunks().to_batches()[0]


def _built(rows: Sequence[Row]) -> pa.RecordBatch:
    """Return a batch made from rows as the driver gave them."""
    arrow = _pyarrow()
    schema: Any = arrow_schema()
    arrays: list[Any] = []
    for field, values in zip(schema, zip(*rows, strict=True), strict=True):
        if field.name != "recorded_at":
            arrays.append(arrow.array(values, field.type))
        elif isinstance(values[0], str):
            naive = arrow.array(values, arrow.string()).cast(arrow.timestamp("us"))
            arrays.append(naive.cast(field.type))
        else:
            arrays.append(arrow.array(values, arrow.timestamp("us")).cast(field.type))
    return cast("pa.RecordBatch", arrow.RecordBatch.from_arrays(arrays, schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra("pyarrow", "analytics") from None
    return pyarrow
