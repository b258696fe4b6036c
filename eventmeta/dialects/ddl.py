"""The contract of a database for DDL: creating and changing tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    Column,
    Constraint,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import AddConstraint, CreateColumn

from eventmeta.dialects.columns import ColumnDialect
from eventmeta.dialects.connecting import ConnectingDialect
from eventmeta.dialects.statement import compiled
from eventmeta.tables.tables import Tables


class Part(NamedTuple):
    """A part of the schema.

    Attributes:
        kind: ``table``, ``view``, ``column``, ``index``, ``foreign key`` or ``trigger``.
        relation: The table or view that it is, or belongs to.
        name: Its own name, for a foreign key that of its column; empty for a table or view.
    """

    kind: str
    relation: str
    name: str = ""


class DDL(ConnectingDialect, ColumnDialect):
    """The DDL of one kind of database, behind one engine."""

    event_id_key: ClassVar[tuple[str, ...]] = ("event_id", "stream_id", "stream_type")
    """The columns of the key of event ids.

    In this order, a batch's ids, which begin with the time, lie on one or two pages.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.branched: set[str] = set()

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """Return the keys of the log.

        Each unique key contains the stream, so that the log can be sharded.
        """
        return (
            PrimaryKeyConstraint("stream_id", "stream_type", "version"),
            UniqueConstraint(*self.event_id_key, name=f"uq_{table}_event_id"),
            Index(f"idx_{table}_position", "position"),
        )

    def prepare_tables(self, tables: Iterable[Table]) -> None:
        """Complete the definitions with what only the server can tell, before they are created."""

    @abstractmethod
    def list_parts(self, relations: Iterable[str]) -> str:
        """Return a query for the existing parts of ``relations``: rows ``kind, relation, name``.

        The query sees all of them with no more rights than to read and write rows.
        """

    @abstractmethod
    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """Keep other processes from changing the schema until the end of this transaction."""

    def finish_schema_change(self) -> Sequence[str]:
        """Return statements that end `begin_schema_change`, if the transaction's end does not."""
        return ()

    def add_column(self, column: Column[Any]) -> str:
        """Return the DDL that adds ``column``, with its foreign key, to a table that has rows."""
        references = "".join(
            " REFERENCES " + self._add_foreign_key(key).partition(" REFERENCES ")[2]
            for key in foreign_keys(column)
        )
        table = self.named(column.table.name)
        return f"ALTER TABLE {table} ADD COLUMN {self.column_definition(column)}{references}"

    def column_definition(self, column: Column[Any]) -> str:
        """Return ``column`` as it is written in ADD COLUMN."""
        return self.ddl(CreateColumn(column))

    @abstractmethod
    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """Return the DDL that adds ``key`` to a table that has rows, without a check of the rows.

        Args:
            key: The foreign key.
            with_column: Whether `add_column` has just added its column.
        """

    @abstractmethod
    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Return the DDL of triggers and functions, such as those that make the log append-only.

        The key of each entry is a part that exists when all of its statements have been run. The
        DDL may be repeated if some of it exists already.
        """

    @abstractmethod
    def create_view(self, name: str, definition: str) -> str:
        """Return the DDL of a view that is created unless it exists."""

    def ddl(self, element: Any) -> str:
        """Return ``element`` of a schema as this database spells it."""
        return self._compiled(element).strip()

    def _compiled(self, element: Any, **options: Any) -> str:
        return str(compiled(element, self.engine.dialect, self.translation, **options))

    def _add_foreign_key(self, key: ForeignKeyConstraint) -> str:
        return self.ddl(AddConstraint(key, isolate_from_table=False))


def foreign_keys(column: Column[Any]) -> list[ForeignKeyConstraint]:
    """Return the foreign keys that consist of ``column`` alone."""
    return [
        key.constraint
        for key in column.foreign_keys
        if key.constraint is not None and len(key.constraint.elements) == 1
    ]
