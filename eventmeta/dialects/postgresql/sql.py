"""SQL of PostgreSQL: JSON record sets, a sequence, and the fence that its readers wait for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by, insert
from sqlalchemy.sql.selectable import LateralFromClause
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.events import select_pairs
from eventmeta.dialects.item_times import last_time
from eventmeta.dialects.items import Structure
from eventmeta.dialects.postgresql.columns import PostgreSQLColumns
from eventmeta.dialects.postgresql.ddl import PostgreSQLSchema
from eventmeta.dialects.postgresql.fast_path import (
    append_in_one_statement,
    fence_key,
    in_text,
    last_position,
    namespace,
    sequence_name,
)
from eventmeta.dialects.postgresql.fast_path_items import structure_parts
from eventmeta.dialects.postgresql.items import PostgreSQLItems
from eventmeta.dialects.postgresql.projector import PostgreSQLProjecting
from eventmeta.dialects.streams import LOCK_TIMEOUT_MS, SHORT_WAIT_MS, seen_streams
from eventmeta.tables.tables import Tables
from projections import AnySelect, Projection
from projections.types import UtcDateTime


class PostgreSQLStatements(
    PostgreSQLColumns, PostgreSQLItems, PostgreSQLSchema, PostgreSQLProjecting, Dialect
):
    """The SQL of PostgreSQL."""

    # --- Pieces of SQL --------------------------------------------------------------------------

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        return (
            func.json_to_recordset(cast(bindparam(name, type_=Text()), JSON))
            .table_valued(
                *(column(field, kind) for field, kind in columns.items()), name=f"given_{name}"
            )
            .render_derived(with_types=True)
        )

    def keyed_recordset(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], key: ColumnElement[str]
    ) -> tuple[FromClause, ColumnElement[bool]]:
        rows = self.recordset(name, {**columns, "keys": ARRAY(Text())})
        return rows, key == any_(rows.c["keys"])

    def is_among(self, name: str, key: ColumnElement[str]) -> ColumnElement[bool]:
        return key == any_(bindparam(name, type_=ARRAY(Text())))

    def json_text(self, document: ColumnElement[str], name: str) -> ColumnElement[str]:
        return cast(document, JSON).op("->>", return_type=Text())(literal_column(f"'{name}'"))

    def utc_day(self, time: ColumnElement[datetime]) -> ColumnElement[Any]:
        return func.date(func.timezone("UTC", time))

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        times = func.array_agg(aggregate_order_by(time, version.desc())).filter(among)
        return type_coerce(times, ARRAY(UtcDateTime()))[literal_column("1")]

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        # jsonb, because its parts are read without parsing them again. All that matters is text.
        pair = func.jsonb_array_elements(
            cast(events.c.data, JSONB).op("->")(literal_column("'changes'"))
        ).table_valued("value", name="change", joins_implicitly=True)

        def item(index: int) -> ColumnElement[Any]:
            return pair.c.value.op("->>", return_type=Text())(literal_column(str(index)))

        return select_pairs(about, item).select_from(events, pair)

    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        statement = insert(table).from_select(list(columns), source)
        if not update:
            return statement.on_conflict_do_nothing()
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: statement.excluded[name] for name in update},
        )

    def look_up(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        *also: ColumnElement[Any],
        index: str | None = None,
    ) -> AnySelect:
        """Select row by row: for a record set, the planner would scan a whole table.

        It expects a record set to have many rows.
        """
        found = select(*columns).where(on).offset(0).lateral("found")
        return select(*also, *found.c).select_from(wanted.join(found, true()))

    def look_up_last(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        order: Sequence[ColumnElement[Any]],
        *also: ColumnElement[Any],
    ) -> AnySelect:
        ranks = [column.label(f"rank_{n}") for n, column in enumerate(order)]
        last = select(*columns, *ranks).where(on).order_by(*(column.desc() for column in order))
        found = last.limit(wanted.c.limit).lateral("found")
        return (
            select(*also, *(found.c[column.name] for column in columns))
            .select_from(wanted.join(found, true()))
            .order_by(*(found.c[rank.name].desc() for rank in ranks))
        )

    def lock_streams(self, tables: Tables, keys: FromClause, *, waits: bool) -> Executable:
        """Lock the heads one by one in the order of their keys, and no rows but those needed."""
        # The timeout applies from the first row on, for the rest of the transaction.
        limit = str(LOCK_TIMEOUT_MS if waits else SHORT_WAIT_MS)
        limited = func.set_config("lock_timeout", limit, true()).is_not(None)
        seen = seen_streams(tables, keys).where(limited).offset(0).subquery("wanted")

        def own(query: AnySelect, name: str) -> LateralFromClause:
            locked = query.with_for_update(key_share=True, skip_locked=not waits)
            return locked.correlate(seen).lateral(name)

        streams, sessions, users = tables.streams, tables.sessions, tables.users.table
        head = own(
            select(streams.c.version, streams.c.recorded_at, streams.c.user_id).where(
                streams.c.stream_id == seen.c.head_to_lock,
                streams.c.stream_type == seen.c.stream_type,
            ),
            "head",
        )
        rows: FromClause = seen.outerjoin(head, true())
        held = seen.c.head_to_lock.is_not(None) & head.c.version.is_(None)
        if not waits:
            for table_id, wanted in (
                (sessions.c.session_id, seen.c.session_to_lock),
                (users.c.user_id, seen.c.user_to_lock),
            ):
                row = own(select(table_id).where(table_id == wanted), f"own_{table_id.table.name}")
                rows = rows.outerjoin(row, true())
                held = held | (wanted.is_not(None) & row.c[table_id.name].is_(None))
        return select(
            seen.c.stream_id,
            seen.c.stream_type,
            seen.c.row_id.is_not(None).label("exists"),
            seen.c.seen_version,
            seen.c.seen_user_id,
            head.c.version,
            head.c.recorded_at,
            head.c.user_id,
            held.label("held"),
            func.clock_timestamp(type_=UtcDateTime()).label("now"),
        ).select_from(rows)

    def add_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        missing = select(
            keys.c.stream_id, keys.c.stream_type, literal(0), func.clock_timestamp()
        ).order_by(keys.c.stream_id, keys.c.stream_type)
        own = insert(streams).from_select(
            ["stream_id", "stream_type", "version", "recorded_at"], missing
        )
        return (
            own.on_conflict_do_update(
                index_elements=list(streams.primary_key), set_={"version": streams.c.version}
            ).returning(
                streams.c.stream_id,
                streams.c.stream_type,
                streams.c.version,
                streams.c.recorded_at,
                streams.c.user_id,
                func.clock_timestamp(type_=UtcDateTime()).label("now"),
            ),
        )

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        """Announce a bound below the positions, then draw them: see `horizon`."""
        log = tables.events.name
        fence = f"SELECT pg_advisory_xact_lock_shared({fence_key(log, self.quoted)})"
        sequence: ColumnElement[str] = literal_column(in_text(self.quoted(sequence_name(log))))
        position = func.nextval(sequence, type_=BigInteger)
        ordered = select(numbers.c.n).order_by(numbers.c.n).offset(0).subquery("ordered")
        return (text(fence), select(position.label("position")).select_from(ordered))

    @property
    def utc_now(self) -> ColumnElement[datetime]:
        """Return the clock in UTC; upstream's defaults are in the time zone of each connection."""
        return func.timezone(literal_column("'UTC'"), func.clock_timestamp())

    def time_of_new_item(self, messages: Table, items: FromClause) -> ColumnElement[datetime]:
        """Return the time of the event; CURRENT_TIMESTAMP is that of the transaction's start."""
        at = func.timezone(literal_column("'UTC'"), items.c.recorded_at)
        return func.greatest(at, last_time(messages, items.c.session_id))

    def append_in_one_statement(
        self,
        tables: Tables,
        projected: Sequence[Executable],
        *,
        with_items: bool,
        for_users: bool,
        structure: Structure | None = None,
        folded: Projection | None = None,
    ) -> str | None:
        texts = [self.literal(statement) for statement in projected]
        parts: list[str] = []
        if with_items and structure is not None:
            writes = [self.literal(write) for write in structure.writes]
            states, items = self.literal(structure.states), self.literal(structure.items)
            parts = structure_parts(tables, self.quoted, states, items, writes)
        return append_in_one_statement(
            tables,
            self.quoted,
            texts,
            with_items=with_items,
            for_users=for_users,
            structure=parts,
            folded=folded,
        )

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """Return min(S, L): S is the last position drawn, L the lowest bound still announced.

        An append locks a bound below its positions before it draws them, and PostgreSQL releases
        the lock only after the commit is visible. So take an event at p ≤ min(S, L): p was drawn
        before S was read, hence its bound b < p was locked before L was read; if it were still
        locked, then L ≤ b < p. There must be two statements: in one, both would share a snapshot
        taken before either is evaluated.

        A standby does not show the locks of its primary, and its sequence runs ahead, so S is NULL
        there.
        """
        log = tables.events.name
        last = text(
            f"SELECT CASE WHEN NOT pg_is_in_recovery() THEN ({last_position(log, self.quoted)}) END"
        ).columns(column("last", BigInteger))
        bound = text(
            "SELECT least(CAST(:previous AS bigint), min((classid::bigint & 65535) << 32 | "
            "objid::bigint)) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND classid::bigint >> 16 = ({namespace(log, self.quoted)})"
        ).columns(column("horizon", BigInteger))
        return (last, bound)
