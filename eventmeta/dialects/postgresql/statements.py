"""PostgreSQL as SQL: JSON record sets, a sequence, and the fence that its readers wait for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy import (
    Sequence as SQLSequence,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import LOCK_TIMEOUT_MS, Dialect
from eventmeta.dialects.postgresql.append import (
    append_at_once,
    fence_key,
    last_position,
    namespace,
    sequence_name,
)
from projections import AnySelect
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SCHEMA_LOCK = 0x6576_6D74


class PostgreSQLStatements(Dialect):
    """What PostgreSQL is told."""

    # --- Schema ---------------------------------------------------------------------------------

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        # Whoever waits for a lock on a table makes all others wait behind him.
        await connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")

    def guards(self, tables: Tables) -> Sequence[str]:
        """All or nothing, and nothing if it is there: DDL would wait for every reader."""
        name = tables.events.name
        log, sequence, refuse = f'"{name}"', sequence_name(name), f'"{name}_refuse"()'
        last = f"{name}_no_truncate"
        return (
            f"""DO $do$ BEGIN
IF NOT EXISTS (
  SELECT FROM pg_trigger WHERE tgname = '{last}' AND tgrelid = '{log}'::regclass
) THEN
  CREATE SEQUENCE {sequence} CACHE 1;
  ALTER TABLE {log} ALTER COLUMN position SET DEFAULT nextval('{sequence}'::regclass);
  CREATE FUNCTION {refuse} RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '{name} is append-only'; END$$;
  CREATE TRIGGER "{name}_no_change" BEFORE UPDATE OR DELETE ON {log}
    FOR EACH ROW EXECUTE FUNCTION {refuse};
  CREATE TRIGGER "{last}" BEFORE TRUNCATE ON {log}
    FOR EACH STATEMENT EXECUTE FUNCTION {refuse};
END IF; END $do$""",
        )

    def create_view(self, name: str, definition: str) -> str:
        return f"""DO $do$ BEGIN
IF to_regclass('"{name}"') IS NULL THEN CREATE VIEW "{name}" AS {definition}; END IF;
END $do$"""

    # --- Pieces of SQL --------------------------------------------------------------------------

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        return (
            func.json_to_recordset(cast(bindparam(name, type_=Text()), JSON))
            .table_valued(
                *(column(field, kind) for field, kind in columns.items()), name=f"given_{name}"
            )
            .render_derived(with_types=True)
        )

    def select_changes(self, events: FromClause, about: Iterable[ColumnElement[Any]]) -> AnySelect:
        pair = func.json_array_elements(
            cast(events.c.data, JSON).op("->")(literal_column("'changes'"))
        ).table_valued("value", name="change", joins_implicitly=True)

        def item(index: int) -> ColumnElement[Any]:
            return pair.c.value.op("->>", return_type=Text())(literal_column(str(index)))

        return select(
            *about,
            item(0).label("key"),
            item(1).label("value"),
            func.coalesce(item(2), item(1)).label("indexed_value"),
        ).select_from(events, pair)

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
    ) -> AnySelect:
        """Row by row: of a record set, the planner expects enough rows to scan a whole table."""
        found = select(*columns).where(on).offset(0).lateral("found")
        return select(*also, *found.c).select_from(wanted.join(found, true()))

    def lock_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        # The limit applies from the first row on, for the rest of the transaction.
        limited = func.set_config("lock_timeout", str(LOCK_TIMEOUT_MS), true()).is_not(None)
        missing = (
            select(keys.c.stream_id, keys.c.stream_type, literal(0), func.clock_timestamp())
            .where(limited)
            .order_by(keys.c.stream_id, keys.c.stream_type)
        )
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
                func.clock_timestamp(type_=UtcDateTime()).label("now"),
            ),
        )

    def allocate(self, tables: Tables, numbers: FromClause) -> Sequence[Executable]:
        """Announce a bound below the positions, then draw them: see `horizon`."""
        log = tables.events.name
        fence = f"SELECT pg_advisory_xact_lock_shared({fence_key(log)})"
        position = SQLSequence(sequence_name(log).strip('"')).next_value()
        ordered = select(numbers.c.n).order_by(numbers.c.n).offset(0).subquery("ordered")
        return (text(fence), select(position.label("position")).select_from(ordered))

    def insert_items(self, messages: Table, items: FromClause) -> Sequence[Executable]:
        """At the time of their event, for CURRENT_TIMESTAMP is when the transaction began."""
        at = cast(
            func.coalesce(items.c.recorded_at, func.clock_timestamp()), messages.c.created_at.type
        )
        source = select(items.c.session_id, items.c.message_data, at).order_by(items.c.n)
        added = insert(messages).from_select(["session_id", "message_data", "created_at"], source)
        return (added.returning(messages.c.session_id, messages.c.id),)

    def append_at_once(
        self, tables: Tables, projected: Sequence[Executable], *, with_items: bool
    ) -> str | None:
        texts = [self.literal(statement) for statement in projected]
        return append_at_once(tables, texts, with_items=with_items)

    def horizon(self, tables: Tables) -> Sequence[Executable]:
        """min(S, L): S the last position drawn, L the lowest bound that is still announced.

        An append locks a bound below its positions before it draws them, and PostgreSQL frees the
        lock only after the commit is visible. So of an event at p ≤ min(S, L): p was drawn before S
        was read, hence its bound b < p was locked before L was read; were it still locked, then
        L ≤ b < p. It must be two statements: in one, both would share a snapshot taken before
        either is evaluated.
        """
        log = tables.events.name
        last = text(last_position(log)).columns(column("last", BigInteger))
        bound = text(
            "SELECT least(CAST(:previous AS bigint), min((classid::bigint & 65535) << 32 | "
            "objid::bigint)) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND classid::bigint >> 16 = ({namespace(log)})"
        ).columns(column("horizon", BigInteger))
        return (last, bound)
