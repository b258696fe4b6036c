"""Statements that mean the same with any codecs that the app has registered on a connection.

asyncpg chooses a codec by the type of a parameter or column. Once another codec is registered, it
forgets the one before. So if there are any, all values travel as texts, and the server converts
them to their types.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from sqlalchemy.util import await_only

from eventmeta.core.database_errors import UnsupportedEngine
from eventmeta.dialects.statement import Query, Row, Statement


class Facts(NamedTuple):
    """The facts found out about a connection when it was prepared.

    Attributes:
        has_codecs: Whether the app has registered codecs of its own.
        has_text_codec: Whether one of them is for texts.
        reads_committed: Whether a statement by itself sees what is committed when it begins, and
            may write.
    """

    has_codecs: bool
    has_text_codec: bool
    reads_committed: bool


_SAMPLES: dict[str, Any] = {
    "text": "text",
    "varchar": "text",
    "json": '{"a": 1}',
    "jsonb": '{"a": 1}',
    "int4": 4,
    "int8": 8,
    "bool": True,
    "uuid": uuid.UUID(int=1),
    "timestamp": datetime(2001, 2, 3, 4, 5, 6, 7),  # noqa: DTZ001
    "timestamptz": datetime(2001, 2, 3, 4, 5, 6, 7, UTC),
    "date": date(2001, 2, 3),
    "text[]": ["text"],
}
_ISOLATION = "convert_to(current_setting('default_transaction_isolation'), 'UTF8')"
_TEXT = "SELECT $1::text, $2::varchar, convert_to($1::text || $2::varchar, 'UTF8')"
_READ_COMMITTED = b"read committed"
_PROBE = ", ".join(f"${n}::{name}" for n, name in enumerate(_SAMPLES, 1))
# A codec may undo its own change, so the server reports what has arrived.
_ARRIVED = """$1::text = 'text' AND $2::varchar = 'text' AND json_typeof($3::json) = 'object'
AND jsonb_typeof($4::jsonb) = 'object' AND $5::int4 = 4 AND $6::int8 = 8 AND $7::bool
AND $8::uuid = '00000000-0000-0000-0000-000000000001'
AND $9::timestamp = '2001-02-03 04:05:06.000007'
AND $10::timestamptz = '2001-02-03 04:05:06.000007+00' AND $11::date = '2001-02-03'"""


def find_out(dbapi_connection: Any) -> Facts:
    """Prepare a connection, and return the facts about it."""
    connection = dbapi_connection.driver_connection
    # Long statements are kept prepared too, if any are: by default asyncpg skips those over 15 kB.
    connection._config = connection._config._replace(max_cacheable_statement_size=0)
    return await_only(_find_out(connection))


async def _find_out(connection: Any) -> Facts:
    import asyncpg

    unusable = (asyncpg.DataError, asyncpg.InterfaceError, TypeError, ValueError, AttributeError)
    try:
        found = await connection.fetchrow(
            f"SELECT {_ISOLATION}, {_PROBE}, {_ARRIVED}", *_SAMPLES.values()
        )
        isolation, *values, arrived = found
        pairs = list(zip(values, _SAMPLES.values(), strict=True))
        del pairs[2:4]  # the store reads no JSON
        if arrived is True and all(a == b and isinstance(a, type(b)) for a, b in pairs):
            return Facts(False, False, isolation == _READ_COMMITTED)
    except unusable:
        isolation = await connection.fetchval(f"SELECT {_ISOLATION}")
    try:
        texts = tuple(await connection.fetchrow(_TEXT, "a", "b"))
    except unusable:
        texts = ()
    return Facts(True, texts != ("a", "b", b"ab"), isolation == _READ_COMMITTED)


# --- Without the codecs --------------------------------------------------------------------------

_proofs: WeakKeyDictionary[Statement, Statement] = WeakKeyDictionary()
_TIMES = ("date", "timestamp", "timestamptz")
_PARAMETER = re.compile(r"\$(\d+)")
_LAST_SELECT = "\nSELECT "
"""The text that begins the last part of a statement whose first parts write."""


async def codec_proof(connection: Any, facts: Facts, query: Query) -> Query:
    """Return a query that does the same as ``query``, whichever codecs are registered.

    Raises:
        UnsupportedEngine: A codec for texts is registered.
    """
    if facts.has_text_codec:
        raise UnsupportedEngine(
            "a codec for text or varchar is registered on the connections of the engine, and the "
            "store cannot know how it changes texts: give the store an engine without it"
        )
    proof = _proofs.get(query.statement)
    if proof is None:
        prepared = await connection.prepare(query.statement.sql)
        proof = _proofs[query.statement] = _Proof(
            query.statement,
            [each.name for each in prepared.get_parameters()],
            [each.type.name for each in prepared.get_attributes()],
        )
    return query._replace(statement=proof, values=tuple(map(_sent, query.values)))


class _Proof(Statement):
    """A statement all of whose values travel as texts."""

    def __init__(
        self, statement: Statement, parameters: Sequence[str], columns: Sequence[str]
    ) -> None:
        self._decode = statement.decode
        self._readers = [_READERS.get(name, str) for name in columns]
        super().__init__(_spelled(statement.sql, parameters, columns), ())
        self.yields_rows = bool(columns)

    def decode(self, rows: Sequence[Row]) -> Sequence[Row]:
        return self._decode(
            [
                tuple(
                    None if value is None else read(value)
                    for read, value in zip(self._readers, row, strict=True)
                )
                for row in rows
            ]
        )


def _spelled(sql: str, parameters: Sequence[str], columns: Sequence[str]) -> str:
    def typed(found: re.Match[str]) -> str:
        kind = parameters[int(found[1]) - 1]
        return f"CAST(CAST({found[0]} AS text) AS {kind})"

    sql = _PARAMETER.sub(typed, sql)
    if not columns:
        return sql
    names = [f"c{n}" for n, _ in enumerate(columns)]
    texts = ", ".join(map(_read, names, columns))
    result = f"SELECT {texts} FROM _rows"
    if _LAST_SELECT in sql and sql.startswith("WITH"):
        writes, _, last = sql.rpartition(_LAST_SELECT)
        return f"{writes}, _rows ({', '.join(names)}) AS (SELECT {last}) {result}"
    return f"WITH _rows ({', '.join(names)}) AS ({sql}) {result}"


def _read(name: str, kind: str) -> str:
    # JSON spells a time in one way, whatever the setting DateStyle.
    return f"to_json({name}) #>> '{{}}'" if kind in _TIMES else f"CAST({name} AS text)"


def _sent(value: Any) -> str | None:
    return None if value is None else _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "{" + ",".join(map(_element, cast("Sequence[object]", value))) + "}"
    return value.isoformat() if isinstance(value, date) else str(value)


def _element(value: object) -> str:
    """Return an element of an array of texts, in quotes."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), int),
    "bool": "true".__eq__,
    "date": date.fromisoformat,
    "float4": float,
    "float8": float,
    "numeric": Decimal,
    "timestamp": _time,
    "timestamptz": _moment,
    "uuid": uuid.UUID,
}
