"""What a database must be able to do for the tables: the part of the contract that is about DDL."""

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
    """Something that a schema has.

    Attributes:
        kind: ``table``, ``view``, ``column``, ``index``, ``foreign key`` or ``trigger``.
        relation: The table or view that it is or belongs to.
        name: Its own name, of a foreign key that of its column; empty for a table or view.
    """

    kind: str
    relation: str
    name: str = ""


class DDL(ConnectingDialect, ColumnDialect):
    """The DDL of one kind of database, behind one engine."""

    event_id_key: ClassVar[tuple[str, ...]] = ("event_id", "stream_id", "stream_type")
    """In this order those of a batch, which are ordered by time, come to lie on a page or two."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.branched: set[str] = set()

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """The keys of the log. Each unique one contains the stream, so that it can be sharded."""
        return (
            PrimaryKeyConstraint("stream_id", "stream_type", "version"),
            UniqueConstraint(*self.event_id_key, name=f"uq_{table}_event_id"),
            Index(f"idx_{table}_position", "position"),
        )

    def prepare_tables(self, tables: Iterable[Table]) -> None:
        """Add to the definitions what only the server can tell, before they are created."""

    @abstractmethod
    def list_parts(self, relations: Iterable[str]) -> str:
        """One query for the parts of ``relations`` that exist: a row ``kind, relation, name`` each.

        It sees all of them with no more rights than those to read and write rows.
        """

    @abstractmethod
    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        """Let no other process change the schema until the end of this transaction."""

    def finish_schema_change(self) -> Sequence[str]:
        """What gives the way free again, where the end of the transaction does not."""
        return ()

    def add_column(self, column: Column[Any]) -> str:
        """The DDL that adds ``column``, with its foreign key, to a table that has rows."""
        references = "".join(
            " REFERENCES " + self._add_foreign_key(key).partition(" REFERENCES ")[2]
            for key in foreign_keys(column)
        )
        table = self.named(column.table.name)
        return f"ALTER TABLE {table} ADD COLUMN {self.column_definition(column)}{references}"

    def column_definition(self, column: Column[Any]) -> str:
        """``column`` as it stands in ADD COLUMN."""
        return self.ddl(CreateColumn(column))

    @abstractmethod
    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """The DDL that adds ``key`` to a table that has rows, without a check of the rows.

        Args:
            key: The foreign key.
            with_column: Its column has just been added, by `add_column`.
        """

    @abstractmethod
    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """The DDL of triggers and functions, such as what makes the log refuse UPDATE and DELETE.

        The part that stands for it exists when all of it does. What exists of it already does no
        harm to the DDL.
        """

    @abstractmethod
    def create_view(self, name: str, definition: str) -> str:
        """The DDL of a view that is made unless it exists."""

    def ddl(self, element: Any) -> str:
        """``element`` of a schema as this database spells it."""
        return self._compiled(element).strip()

    def _compiled(self, element: Any, **options: Any) -> str:
        return str(compiled(element, self.engine.dialect, self.translation, **options))

    def _add_foreign_key(self, key: ForeignKeyConstraint) -> str:
        return self.ddl(AddConstraint(key, isolate_from_table=False))


def foreign_keys(column: Column[Any]) -> list[ForeignKeyConstraint]:
    """The foreign keys of ``column`` alone."""
    return [
        key.constraint
        for key in column.foreign_keys
        if key.constraint is not None and len(key.constraint.elements) == 1
    ]
