"""The log of a store as a whole: following it, replaying it up to any point, exporting it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventmeta.core.as_of import parse_log_as_of
from eventmeta.core.errors import InvalidInput
from eventmeta.core.events import Position, RecordedEvent, StreamKey
from eventmeta.core.validation import (
    check_count,
    check_event_type,
    check_seconds,
    check_session_id,
    check_types,
)
from eventmeta.log.arrow import ArrowExport, ExportProgress, arrow_schema
from eventmeta.projector.replay import Replay
from eventmeta.projector.subscription import Subscription
from eventmeta.projector.worker import MAX_POLL
from eventmeta.store.handle import StoreHandle
from eventmeta.tables.names import RESERVED_ENDINGS
from projections import AnyProjection

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIX = re.compile(r"[A-Za-z0-9_]{1,16}")


class StoreLog(StoreHandle):
    """A store with its log, as the administrator sees it."""

    async def replay(
        self, projection: AnyProjection | str, *, until: int | Position | datetime | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of a projection at some point of the log, folded in memory.

        Args:
            projection: A projection, which need not be registered, or the name of a registered one.
            until: A position or an aware datetime; None for the whole log.

        Raises:
            InvalidPoint: ``until`` names no point in the log.
            StandbyServer: The log can be replayed only on the primary.
        """
        replay = self._replay(projection, until)
        await self._connected()
        return await replay.rows()

    async def replay_into(
        self,
        suffix: str,
        projection: AnyProjection | str,
        *,
        until: int | Position | datetime | None = None,
    ) -> list[str]:
        """Fold a projection up to some point of the log into scratch tables, for queries in SQL.

        The scratch tables stay until they are dropped.

        Args:
            suffix: The end of the tables' names, which begin with the names of the projection's own
                tables. Earlier tables of these names are replaced.
            projection: As for `replay`.
            until: As for `replay`.

        Returns:
            The names of the tables.

        Raises:
            InvalidInput: The suffix cannot be used, or ``until`` names no point in the log.
        """
        replay = self._replay(projection, until)
        names = [f"{table.name}{suffix}" for table in replay.projection.tables]
        if not _is_suffix(suffix) or any(map(self._log.registry.has_table, names)):
            raise InvalidInput(
                f"suffix {suffix!r} is not usable: take up to 16 ASCII letters, digits and "
                "underscores that do not lead to the name of another table, such as '_yesterday'"
            )
        await self._connected()
        return await replay.into(suffix)

    def _replay(
        self, projection: AnyProjection | str, until: int | Position | datetime | None
    ) -> Replay:
        if isinstance(projection, str):
            projection = self._log.registry[projection].projection
        bound = None if until is None else parse_log_as_of(until)
        return Replay(self._log, projection, bound)

    async def subscribe(
        self,
        name: str,
        *,
        after: int = 0,
        types: Collection[str] | None = None,
        max_poll: float = MAX_POLL,
    ) -> AsyncGenerator[RecordedEvent]:
        """Yield the events after the position of the subscription ``name``, and then new events.

        The position is kept in the database. To leave the loop early, close the iterator: ``async
        with aclosing(store.subscribe("mailer")) as events:``. One reader follows a name at a time;
        another reader waits until the first has left or crashed. An event counts as handled when
        the next one is requested. After a crash, the events of the last second come again, so it
        must be safe to handle an event twice.

        Args:
            name: The name of the subscription: lower-case letters, digits, dots, underscores.
            after: The position after which a new subscription begins.
            types: Only events of these types.
            max_poll: The longest pause between two checks of the log, in seconds.

        Raises:
            InvalidInput: An argument cannot be used.
            StoreClosed: This handle was closed meanwhile.
            LeaseLost: Another reader has taken over because handling an event took too long.
            StandbyServer: The feed can be followed only on the primary.
        """
        check_event_type(name, "subscription")
        check_count("after", after)
        kinds = check_types(types)
        check_seconds("max_poll", max_poll)
        await self._connected()
        await self._log.refuse_standby()
        following = Subscription(self._log, name, after, kinds, max_poll).follow()
        try:
            async for event in following:
                self._check_open()
                yield event
        finally:
            await following.aclose()

    # --- Analytics ------------------------------------------------------------------------------

    async def arrow_batches(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        types: Collection[str] | None = None,
        stream: str | None = None,
        progress: Callable[[ExportProgress], Any] | None = None,
    ) -> AsyncGenerator[pa.RecordBatch]:
        """Yield the log as Arrow record batches, in order, in bounded memory.

        The columns are those of an event; ``data`` and ``context`` are JSON text.

        Args:
            after: Only events after this position.
            until: The last position; if None, the last one when the iteration begins.
            types: Only events of these types.
            stream: Only events of this session.
            progress: Called with an `ExportProgress` after each batch.

        Raises:
            MissingExtra: pyarrow is not installed.
            InvalidInput: An argument cannot be used.
            StoreClosed: This handle was closed meanwhile.
        """
        arrow_schema()
        check_count("after", after)
        if until is not None:
            check_count("until", until)
        key = None if stream is None else StreamKey(check_session_id(stream))
        await self._connected()
        log = self._log
        async with aclosing(
            ArrowExport(log, after, until, check_types(types), key, progress).batches()
        ) as batches:
            async for batch in batches:
                self._check_open()
                yield batch

    async def to_arrow(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        types: Collection[str] | None = None,
        stream: str | None = None,
        progress: Callable[[ExportProgress], Any] | None = None,
    ) -> pa.Table:
        """Return the log as one Arrow table, which polars, pandas and DuckDB take in one call.

        The whole table is in memory: 1,000,000 events take some hundred megabytes. The arguments
        and errors are those of `arrow_batches`.
        """
        schema = arrow_schema()
        part = self.arrow_batches(
            after=after, until=until, types=types, stream=stream, progress=progress
        )
        batches = [batch async for batch in part]
        from pyarrow import Table

        return Table.from_batches(batches, schema)


def _is_suffix(value: object) -> bool:
    return (
        isinstance(value, str)
        and _SUFFIX.fullmatch(value) is not None
        and not value.lower().endswith(RESERVED_ENDINGS)
    )
