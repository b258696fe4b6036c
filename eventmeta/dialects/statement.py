"""Statements compiled once, which the driver runs as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import orjson
from sqlalchemy import ClauseElement, Executable
from sqlalchemy import Dialect as SQLDialect
from sqlalchemy.sql.compiler import Compiled, SQLCompiler

from eventmeta.core.database_errors import CorruptEvent, DatabaseFailure, UnexpectedRowCount

T = TypeVar("T")

Row = Sequence[Any]
Convert = Callable[[Any], Any]
Translation = Mapping[str | None, str | None]
"""The schemas that replace others, as in SQLAlchemy's ``schema_translate_map``."""


def translated_schema(options: Mapping[str, Any]) -> str | None:
    """Return the schema that execution options give to tables without one."""
    translation: Translation = options.get("schema_translate_map") or {}
    return translation.get(None)


def compiled(
    element: Any, dialect: SQLDialect, translation: Translation, **options: Any
) -> Compiled:
    """Return ``element`` as ``dialect`` spells it, with its schemas translated."""
    if translation:
        options |= {"schema_translate_map": translation, "render_schema_translate": True}
    return cast(ClauseElement, element).compile(dialect=dialect, **options)


class Statement:
    """SQL text, the order of its parameters, and how to read its rows."""

    def __init__(
        self,
        sql: str,
        names: Sequence[str],
        *,
        constants: Mapping[str, Any] | None = None,
        encoders: Mapping[str, Convert] | None = None,
        decoders: Sequence[Convert | None] = (),
        columns: Sequence[str] = (),
    ) -> None:
        self.sql = sql
        self._names = tuple(names)
        self._constants = constants or {}
        self._encoders = encoders or {}
        self._decoders = [(n, decode) for n, decode in enumerate(decoders) if decode]
        self.yields_rows = bool(decoders)
        self._columns = columns

    @classmethod
    def compile(
        cls, executable: Executable, dialect: SQLDialect, translation: Translation
    ) -> Statement:
        """Return ``executable`` as ``dialect`` spells it, its schemas translated."""
        made = cast(SQLCompiler, compiled(executable, dialect, translation))
        binds = made.binds
        encoders = {
            name: encode
            for name, bind in binds.items()
            if (encode := bind.type.dialect_impl(dialect).bind_processor(dialect))
        }
        required = {name: None for name, bind in binds.items() if bind.required}
        columns = getattr(executable, "exported_columns", ())
        return cls(
            str(made),
            made.positiontup or (),
            constants=cast("dict[str, Any]", made.construct_params(required)),
            encoders=encoders,
            decoders=[
                column.type.dialect_impl(dialect).result_processor(dialect, None)
                for column in columns
            ],
            columns=[*columns.keys()] if columns else (),
        )

    def __call__(self, **values: Any) -> Query:
        """Return this statement with its parameters; names that it does not have are ignored."""
        return Query(self, tuple([self._value(name, values) for name in self._names]))

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        value = values[name] if name in values else self._constants[name]
        encode = self._encoders.get(name)
        return encode(value) if encode else value

    def decode(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return rows from the driver with the types of the statement's columns.

        Raises:
            CorruptEvent: A value of an event cannot be read.
            DatabaseFailure: A value of another row cannot be read.
        """
        return [self._decoded(row) for row in rows] if self._decoders else rows

    def _decoded(self, row: Row) -> Row:
        values = list(row)
        try:
            for n, decode in self._decoders:
                values[n] = decode(values[n])
            return tuple(values)
        except (TypeError, ValueError) as error:
            found = dict(zip(self._columns, row, strict=False))
            problem = f"cannot be read: {error}"
            if "position" not in found:
                names = ", ".join(found)
                raise DatabaseFailure(f"a row with the columns {names} {problem}") from None
            raise CorruptEvent(
                found["position"], found.get("stream_id"), found.get("version"), problem
            ) from None


class Query(NamedTuple):
    """A statement with the values of its parameters.

    Attributes:
        statement: The statement.
        values: The values of its parameters, or those of each row.
        each: Whether the statement is run for each row, and yields nothing.
        affects: The number of rows that it must change or yield, if that is known.
    """

    statement: Statement
    values: Sequence[Any]
    each: bool = False
    affects: int | None = None

    def affecting(self, rows: int) -> Query:
        """Return the same query, which fails unless it changes or yields this many rows."""
        return self._replace(affects=rows)

    def check_affected(self, rows: int) -> None:
        """Raise `UnexpectedRowCount` unless the statement changed as many rows as it must."""
        if self.affects is not None and rows != self.affects:
            raise UnexpectedRowCount(self.statement.sql[:120], self.affects, rows)


PutRows = Callable[[Sequence[Row]], Query]
"""A statement that takes whole rows, with values as a record set holds them."""


Program = Generator[Query, Sequence[Row], T]
"""A transaction without its I/O: a generator.

It yields queries, is sent their rows, and returns the result. The dialect runs it: inside one
thread hop on SQLite, with ``await`` elsewhere.
"""


async def run(program: Program[T], execute: Callable[[Query], Awaitable[Sequence[Row]]]) -> T:
    """Run ``program``, and each of its queries by ``execute``."""
    try:
        query = next(program)
        while True:
            query = program.send(await execute(query))
    except StopIteration as done:
        result: T = done.value
        return result


def run_in_thread(program: Program[T], execute: Callable[[Query], Sequence[Row]]) -> T:
    """Run ``program`` with an ``execute`` that is not awaited."""
    try:
        query = next(program)
        while True:
            query = program.send(execute(query))
    except StopIteration as done:
        result: T = done.value
        return result


def only(query: Query) -> Program[Sequence[Row]]:
    """Run one query, and return its rows."""
    return (yield query)


def steps(statements: Sequence[Statement], **values: Any) -> Program[Sequence[Row]]:
    """Run ``statements`` in order, and return the rows of the last."""
    rows: Sequence[Row] = ()
    for statement in statements:
        rows = yield statement(**values)
    return rows


def recordset(rows: Sequence[dict[str, Any]]) -> str:
    """Return ``rows`` as the one parameter that a statement over a record set takes."""
    return orjson.dumps(rows).decode()
