"""SQL of MySQL and MariaDB: JSON tables, a counter row, and texts that are compared as bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    String,
    Table,
    and_,
    bindparam,
    case,
    collate,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.mysql.columns import MySQLColumns
from eventmeta.dialects.mysql.item_times import MySQLItemTimes, read_current
from eventmeta.dialects.mysql.items import MySQLItems
from eventmeta.dialects.mysql.projector import MySQLProjecting
from eventmeta.dialects.streams import seen_streams
from eventmeta.tables.tables import Tables
from projections import AnySelect
from projections.types import LongText, UtcDateTime

_COUNTER = "$log"


class MySQLStatements(MySQLColumns, MySQLItems, MySQLItemTimes, MySQLProjecting, Dialect):
    """The SQL of MySQL and MariaDB."""

    counts_upserts: ClassVar[bool] = False

    # --- Pieces of SQL --------------------------------------------------------------------------

    def _json_table(
        self,
        document: Any,
        path: str,
        fields: Mapping[str, tuple[TypeEngine[Any], str]],
        name: str,
        each: Mapping[str, tuple[TypeEngine[Any], str]] | None = None,
    ) -> FromClause:
        """Return a row for each place that ``path`` names in the JSON ``document``.

        With ``each``, there is a row for each place that the paths in ``each`` name inside those.
        """
        definitions = [
            f"`{field}` {self.column_type(kind)} PATH '{where}'"
            for field, (kind, where) in fields.items()
        ]
        for field, (kind, where) in (each or {}).items():
            definition = f"`{field}` {self.column_type(kind)} PATH '$'"
            definitions.append(f"NESTED PATH '{where}' COLUMNS ({definition})")
        columns = {**fields, **(each or {})}
        return func.json_table(
            document, literal_column(f"'{path}' COLUMNS ({', '.join(definitions)})")
        ).table_valued(
            *(column(field, kind) for field, (kind, _) in columns.items()),
            name=name,
            joins_implicitly=True,
        )

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        fields = {field: (kind, f"$.{field}") for field, kind in columns.items()}
        return self._json_table(bindparam(name), "$[*]", fields, f"given_{name}")

    def keyed_recordset(
        self, name: str, columns: Mapping[str, TypeEngine[Any]], key: ColumnElement[str]
    ) -> tuple[FromClause, ColumnElement[bool]]:
        fields = {field: (kind, f"$.{field}") for field, kind in columns.items()}
        each = {"each_key": (String(255), "$.keys[*]")}
        rows = self._json_table(bindparam(name), "$[*]", fields, f"given_{name}", each)
        return rows, key == rows.c.each_key

    def json_text(self, document: ColumnElement[str], name: str) -> ColumnElement[str]:
        value = func.json_extract(document, literal_column(f"'$.{name}'"))
        text = collate(func.json_unquote(value, type_=LongText), self.collation)
        return case((func.json_type(value) != "NULL", text))

    def time_of_last(
        self, time: ColumnElement[Any], version: ColumnElement[int], among: ColumnElement[bool]
    ) -> ColumnElement[datetime]:
        """Aggregate texts of version and time, and return the time at the end of the greatest."""
        text = func.concat(func.lpad(version, literal_column("19"), literal_column("'0'")), time)
        last = func.max(case((among, text)))
        # TIMESTAMP() makes a DATETIME(6), which SQLAlchemy's CAST cannot spell.
        text_of_time = func.substr(last, literal_column("20"))
        return func.timestamp(text_of_time, type_=UtcDateTime())

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        change = self._json_table(
            events.c.data,
            "$.changes[*]",
            {
                "key": (String(255), "$[0]"),
                "value": (LongText, "$[1]"),
                "respelled": (String(64), "$[2]"),
            },
            "change",
        )
        return select(
            *about,
            change.c.key,
            change.c.value,
            func.coalesce(change.c.respelled, change.c.value).label("indexed_value"),
        ).select_from(events, change)

    def upsert(
        self,
        table: Table,
        columns: Sequence[str],
        source: AnySelect,
        update: Collection[str],
    ) -> Insert:
        statement = insert(table).from_select(list(columns), source)
        same = {key.name: table.c[key.name] for key in list(table.primary_key)[:1]}
        return statement.on_duplicate_key_update(
            {name: statement.inserted[name] for name in update} or same
        )

    def look_up(
        self,
        wanted: FromClause,
        columns: Sequence[ColumnElement[Any]],
        on: ColumnElement[bool],
        *also: ColumnElement[Any],
        index: str | None = None,
    ) -> AnySelect:
        """Select by ``index``, which is forced.

        The planner takes any index of a table without statistics, and would read a whole session.
        """
        found = super().look_up(wanted, columns, on, *also, index=index)
        if index is None:
            return found
        return found.with_hint(columns[0].table, f"FORCE INDEX (`{index}`)")

    def current(self, query: AnySelect, *, waits: bool = True) -> AnySelect:
        return read_current(query, waits=waits)

    def locked(self, query: AnySelect, *, waits: bool, key_share: bool = False) -> AnySelect:
        return query.with_for_update(nowait=not waits)

    def lock_streams(self, tables: Tables, keys: FromClause, *, waits: bool) -> Executable:
        """Lock the heads by primary keys that exist; a search for a missing key would lock its gap.

        Rows that a derived table reads are not locked. The limit keeps the server from merging it.
        """
        seen = seen_streams(tables, keys).limit(literal_column("18446744073709551615"))
        wanted = seen.subquery("wanted")
        head = tables.streams.alias("head")
        session, user = tables.sessions.alias("own"), tables.users.table.alias("own_user")
        same = and_(
            head.c.stream_id == wanted.c.head_to_lock, head.c.stream_type == wanted.c.stream_type
        )
        rows = wanted.outerjoin(head, same)
        held: ColumnElement[bool] = and_(
            wanted.c.head_to_lock.is_not(None), head.c.version.is_(None)
        )
        owned = [head]
        if not waits:
            rows = rows.outerjoin(session, session.c.session_id == wanted.c.session_to_lock)
            rows = rows.outerjoin(user, user.c.user_id == wanted.c.user_to_lock)
            held = or_(
                held,
                wanted.c.session_to_lock.is_not(None) & session.c.session_id.is_(None),
                wanted.c.user_to_lock.is_not(None) & user.c.user_id.is_(None),
            )
            owned += [session, user]
        query = select(
            wanted.c.stream_id,
            wanted.c.stream_type,
            wanted.c.row_id.is_not(None).label("exists"),
            wanted.c.seen_version,
            wanted.c.seen_user_id,
            head.c.version,
            head.c.recorded_at,
            head.c.user_id,
            held.label("held"),
            func.utc_timestamp(literal_column("6"), type_=UtcDateTime()).label("now"),
        ).select_from(rows)
        for table in owned:
            query = query.with_hint(table, "FORCE INDEX (PRIMARY)")
        # STRAIGHT_JOIN: of a small table, the planner would read, and so lock, every row.
        return query.prefix_with("STRAIGHT_JOIN").with_for_update(
            of=None if self.is_mariadb else owned, skip_locked=not waits
        )

    def add_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """Insert the heads first: locking rows that do not exist yet would deadlock on their gaps.

        MariaDB returns the rows; MySQL has no RETURNING.
        """
        missing = select(
            keys.c.stream_id,
            keys.c.stream_type,
            literal(0),
            func.utc_timestamp(literal_column("6")),
        ).order_by(keys.c.stream_id, keys.c.stream_type)
        own = self.upsert(
            streams, ["stream_id", "stream_type", "version", "recorded_at"], missing, ()
        )
        columns = (
            streams.c.stream_id,
            streams.c.stream_type,
            streams.c.version,
            streams.c.recorded_at,
            streams.c.user_id,
            func.utc_timestamp(literal_column("6"), type_=UtcDateTime()).label("now"),
        )
        if self.is_mariadb:
            return (own.returning(*columns),)
        heads = (
            select(*columns)
            .select_from(keys)
            .join(
                streams,
                and_(
                    streams.c.stream_id == keys.c.stream_id,
                    streams.c.stream_type == keys.c.stream_type,
                ),
            )
            # STRAIGHT_JOIN: of a small table, the planner would read, and so lock, every row.
            .prefix_with("STRAIGHT_JOIN")
            .with_hint(streams, "FORCE INDEX (PRIMARY)")
            .with_for_update(of=streams)
        )
        return (own, heads)

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        """Draw from the counter; its row lock makes positions follow the order of commits."""
        streams = tables.streams
        last = func.last_insert_id
        drawn = select(
            literal(""),
            literal(_COUNTER),
            last(func.count(), type_=BigInteger),
            func.utc_timestamp(literal_column("6")),
        ).select_from(numbers)
        statement = insert(streams).from_select(
            ["stream_id", "stream_type", "version", "recorded_at"], drawn
        )
        draw = statement.on_duplicate_key_update(
            version=last(streams.c.version + statement.inserted.version)
        )
        count = select(func.count()).select_from(numbers.alias("counted")).scalar_subquery()
        return (draw, select(last(type_=BigInteger) - count + numbers.c.n).order_by(numbers.c.n))

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """Return the counter: its row is locked from the draw until the events are visible."""
        streams = tables.streams
        counter = select(func.coalesce(func.max(streams.c.version), 0)).where(
            streams.c.stream_id == "", streams.c.stream_type == _COUNTER
        )
        return (counter,)
