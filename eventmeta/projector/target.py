"""A projection with the tables in which it is kept or built, and the statements for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Table,
    bindparam,
    exists,
    func,
    insert,
    select,
)

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.events import concerns
from eventmeta.dialects.statement import Statement
from eventmeta.projector.checkpoints import LIVE, Key
from eventmeta.read_models.fold import delete_rows, select_rows, upsert_rows
from eventmeta.tables.tables import Tables
from projections import (
    EVENT_COLUMNS,
    AnyProjection,
    AnySelect,
    AppliedProjection,
    Events,
    Projection,
)
from projections.types import BigInt, SessionId


@dataclass(frozen=True)
class ProjectionTarget:
    """A projection with the tables that it writes to.

    Attributes:
        projection: The projection.
        store: The tables of the store.
        dialect: The dialect of the database.
        tables: The tables that the projection writes to, in the order of its own.
        state: ``"live"``, or ``"building"`` if the tables are to replace live ones.
    """

    projection: AnyProjection
    store: Tables
    dialect: Dialect
    tables: tuple[Table, ...]
    state: str = LIVE

    @property
    def key(self) -> Key:
        """Return the key of the checkpoint."""
        return Key(self.projection.name, self.state)

    @property
    def applied(self) -> AppliedProjection | None:
        """Return the projection if it is plain Python, else None."""
        return self.projection if isinstance(self.projection, AppliedProjection) else None

    @property
    def folded(self) -> Projection | None:
        """Return the projection with its table if the database folds it, else None."""
        if isinstance(self.projection, Projection):
            return replace(self.projection, table=self.tables[0])
        return None

    # --- The next events ------------------------------------------------------------------------

    @cached_property
    def batch_end(self) -> Statement:
        """Select the end and the number of the next events: ``after``, ``until``, ``limit``."""
        position = self._log.position
        page = (
            select(position)
            .where(self._ours, position > _bound("after"), position <= _bound("until"))
            .order_by(position)
            .limit(bindparam("limit", type_=BigInteger()))
            .subquery("page")
        )
        return self._compile(select(func.max(page.c.position), func.count()))

    @cached_property
    def fold_range(self) -> list[Statement]:
        """Fold the events after ``after`` up to ``until``, except those of parked streams."""
        return self._fold(self._range)

    @cached_property
    def events_in_range(self) -> Statement:
        """Select the same events as `fold_range` folds, in order."""
        return self._compile(self._range.order_by(self._log.position))

    @cached_property
    def fold_stream(self) -> list[Statement]:
        """Fold the events of a stream: ``stream_id``, ``stream_type``, ``after``, ``until``."""
        return self._fold(self._of_stream)

    @cached_property
    def events_of_stream(self) -> Statement:
        """Select the same events as `fold_stream` folds, in order."""
        return self._compile(self._of_stream.order_by(self._log.position))

    def _fold(self, events: AnySelect) -> list[Statement]:
        assert self.folded is not None
        relation = self.dialect.relation(self.dialect.fenced(events, self._log.position))
        return [
            self._compile(delete_rows(self.folded, self.dialect, relation)),
            self._compile(upsert_rows(self.folded, self.dialect, relation)),
        ]

    @property
    def _range(self) -> AnySelect:
        position = self._log.position
        return self._events(position > _bound("after"), position <= _bound("until")).where(
            ~self.is_parked
        )

    @property
    def _of_stream(self) -> AnySelect:
        log = self._log
        return self._events(
            log.stream_id == bindparam("stream_id", type_=SessionId),
            log.stream_type == bindparam("stream_type", type_=log.stream_type.type),
            log.position > _bound("after"),
            log.position <= _bound("until"),
        )

    @property
    def is_parked(self) -> ColumnElement[bool]:
        """Return the condition that an event, or an earlier one of its stream, has failed."""
        parked = self.store.parked_streams.c
        return exists().where(
            parked.stream_id == self._log.stream_id,
            parked.stream_type == self._log.stream_type,
            parked.projection == self.key.projection,
            parked.state == self.key.state,
            parked.position <= self._log.position,
        )

    # --- Whole streams --------------------------------------------------------------------------

    @cached_property
    def streams_end(self) -> Statement:
        """Select the last of the next ``limit`` streams after ``after``."""
        heads = self.store.streams.c
        page = (
            select(heads.stream_id)
            .where(
                heads.stream_type == self.projection.stream_type,
                heads.stream_id > bindparam("after", type_=SessionId),
            )
            .order_by(heads.stream_id)
            .limit(bindparam("limit", type_=BigInteger()))
            .subquery("page")
        )
        return self._compile(select(func.max(page.c.stream_id)))

    @cached_property
    def fill(self) -> Statement:
        """Insert the rows of the streams after ``first`` up to ``last``, as of ``until``."""
        assert self.folded is not None
        log, table = self._log, self.folded.table
        events = self._events(
            log.stream_id > bindparam("first", type_=SessionId),
            log.stream_id <= bindparam("last", type_=SessionId),
            # ``+ 0`` rules out the index of positions: it would read the whole log for each chunk.
            (log.position + 0) <= _bound("until"),
        )
        rows = select_rows(self.folded, self.dialect.relation(events.subquery("events")))
        ordered = rows.order_by(*(rows.selected_columns[key.name] for key in table.primary_key))
        return self._compile(insert(table).from_select([c.name for c in table.columns], ordered))

    def rows(self, events: Events) -> AnySelect:
        """Return the Select of the rows that follow from ``events``."""
        assert self.folded is not None
        return select_rows(self.folded, events)

    def relation(self, *conditions: ColumnElement[bool]) -> Events:
        """Return the events of the log that concern the projection and meet ``conditions``."""
        return self.dialect.relation(self._events(*conditions).subquery("events"))

    # --------------------------------------------------------------------------------------------

    def _events(self, *conditions: ColumnElement[bool]) -> AnySelect:
        return select(*(self._log[name] for name in EVENT_COLUMNS)).where(self._ours, *conditions)

    @property
    def _ours(self) -> ColumnElement[bool]:
        return concerns(self.projection, self.store.events)

    @property
    def _log(self) -> Any:
        return self.store.events.c

    def _compile(self, executable: Any) -> Statement:
        return self.dialect.compile(executable)


def _bound(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInt)


def live_target(projection: AnyProjection, store: Tables, dialect: Dialect) -> ProjectionTarget:
    """Return a projection with its live tables, which its readers know."""
    return ProjectionTarget(projection, store, dialect, projection.tables)
