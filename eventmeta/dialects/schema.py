"""What a database must be able to do for the tables: the part of the contract that is about DDL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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

from eventmeta.dialects.statement import compiled, translated_schema

if TYPE_CHECKING:
    from eventmeta.tables import Tables


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


_UNBUFFERED = {"stream_results": False, "yield_per": None, "no_parameters": False}
"""Options of the app's engine that are not for the store's own statements."""


class SchemaDialect(ABC):
    """The DDL of one kind of database, behind one engine."""

    event_id_key: ClassVar[tuple[str, ...]] = ("event_id", "stream_id", "stream_type")
    """In this order those of a batch, which are ordered by time, come to lie on a page or two."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.schema = translated_schema(engine.sync_engine.get_execution_options())
        # What the app says later of its engine is for stores that are opened from then on.
        self.own_engine = engine.execution_options(
            schema_translate_map=self.translation, **_UNBUFFERED
        )

    @property
    def translation(self) -> dict[str | None, str | None]:
        """Where the store's tables are, as SQLAlchemy says it."""
        return {None: self.schema} if self.schema is not None else {}

    def quoted(self, name: str) -> str:
        """Return ``name`` with its schema, in quotes, for a statement that is written by hand."""
        quote = self.engine.dialect.identifier_preparer.quote_identifier
        return quote(name) if self.schema is None else f"{quote(self.schema)}.{quote(name)}"

    def named(self, name: str) -> str:
        """Return ``name`` with its schema, in quotes where it needs them."""
        quote = self.engine.dialect.identifier_preparer.quote
        return quote(name) if self.schema is None else f"{quote(self.schema)}.{quote(name)}"

    def event_keys(self, table: str) -> tuple[Constraint | Index, ...]:
        """The keys of the log. Each unique one contains the stream, so that it can be sharded."""
        return (
            PrimaryKeyConstraint("stream_id", "stream_type", "version"),
            UniqueConstraint(*self.event_id_key, name=f"uq_{table}_event_id"),
            Index(f"idx_{table}_position", "position"),
        )

    async def check_tables(  # noqa: B027
        self, connection: AsyncConnection, tables: Tables
    ) -> None:
        """Refuse existing tables in which different ids would count as equal."""

    def prepare_tables(self, tables: Iterable[Table]) -> None:  # noqa: B027
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
