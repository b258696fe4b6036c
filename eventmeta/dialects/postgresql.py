"""PostgreSQL, through asyncpg: a batch of plain appends is one statement."""

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
)
from sqlalchemy import (
    Sequence as SQLSequence,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeEngine

from eventmeta.dialects.base import Dialect, Failure
from eventmeta.dialects.pool import checkout, configure
from eventmeta.dialects.postgresql_append import (
    append_at_once,
    fence_key,
    last_position,
    namespace,
    sequence_name,
)
from eventmeta.dialects.statement import Program, Query, Row, T
from eventmeta.errors import UnsupportedEngine
from eventmeta.settle import settle
from projections import AnySelect
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables

_SCHEMA_LOCK = 0x6576_6D74


class PostgreSQL(Dialect):
    """Positions come from a sequence, so they are visible out of order: see `horizon`."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.driver != "asyncpg":
            raise UnsupportedEngine(
                f"the driver {engine.dialect.driver!r} is not supported on PostgreSQL: "
                "make the engine from a postgresql+asyncpg:// URL"
            )
        configure(engine, lambda _: None, loop_bound=True)

    # --- Schema ---------------------------------------------------------------------------------

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")

    def guards(self, tables: Tables) -> Sequence[str]:
        name = tables.events.name
        log, sequence, refuse = f'"{name}"', sequence_name(name), f'"{name}_refuse"()'
        return (
            f"CREATE SEQUENCE IF NOT EXISTS {sequence} CACHE 1",
            f"ALTER TABLE {log} ALTER COLUMN position SET DEFAULT nextval('{sequence}'::regclass)",
            f"CREATE OR REPLACE FUNCTION {refuse} RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN RAISE EXCEPTION '{name} is append-only'; END$$",
            f'CREATE OR REPLACE TRIGGER "{name}_no_change" BEFORE UPDATE OR DELETE ON {log} '
            f"FOR EACH ROW EXECUTE FUNCTION {refuse}",
            f'CREATE OR REPLACE TRIGGER "{name}_no_truncate" BEFORE TRUNCATE ON {log} '
            f"FOR EACH STATEMENT EXECUTE FUNCTION {refuse}",
        )

    def create_view(self, name: str, definition: str) -> str:
        return f'CREATE OR REPLACE VIEW "{name}" AS {definition}'

    # --- Pieces of SQL --------------------------------------------------------------------------

    def recordset(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        return (
            func.json_to_recordset(cast(bindparam(name, type_=Text()), JSON))
            .table_valued(*(column(field, kind) for field, kind in columns.items()), name=name)
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

    def lock_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
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

    # --- Running --------------------------------------------------------------------------------

    async def read(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        async with checkout(self.engine, self.is_lost) as connection:
            return [await _execute(connection, query) for query in queries]

    async def write(self, program: Program[T], *, single: bool = False) -> T:
        async with checkout(self.engine, self.is_lost) as connection:
            if single:
                return await _run(connection, program)
            async with connection.transaction():
                return await _run(connection, program)

    async def write_within(self, connection: AsyncConnection, program: Program[T]) -> T:
        async def work() -> T:
            async with connection.begin_nested():
                lent = await connection.get_raw_connection()
                return await _run(lent.driver_connection, program)

        return await settle(work())

    # --- Errors ---------------------------------------------------------------------------------

    def diagnose(self, error: BaseException) -> tuple[Failure, Any]:
        import asyncpg

        code = getattr(error, "sqlstate", None) or getattr(
            getattr(error, "orig", None), "sqlstate", None
        )
        if code is None:
            # InternalClientError: the server's farewell came between two of our messages.
            lost = isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)
            return (Failure.DISCONNECTED if lost else Failure.OTHER), None
        return _FAILURES.get(code, _FAILURES.get(code[:2], Failure.OTHER)), code


_FAILURES = {
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.CONFLICT,
    "23503": Failure.CONFLICT,  # the session's row was deleted meanwhile
    "23505": Failure.DUPLICATE,
    "42P01": Failure.TABLE_MISSING,
    "08": Failure.DISCONNECTED,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "53300": Failure.DISCONNECTED,  # too many connections
}


async def _run(connection: Any, program: Program[T]) -> T:
    try:
        query = next(program)
        while True:
            query = program.send(await _execute(connection, query))
    except StopIteration as done:
        result: T = done.value
        return result


async def _execute(connection: Any, query: Query) -> Sequence[Row]:
    return query.statement.decode(await connection.fetch(query.statement.sql, *query.values))
