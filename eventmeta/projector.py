"""Projections put to use: the one Select of each, as the statements that keep its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Delete, Insert, literal, select, union_all

from eventmeta.dialects import Dialect
from projections import AnySelect, Events, Projection


def remove_rows(projection: Projection, dialect: Dialect, events: Events) -> Delete:
    """Remove the rows that ``events`` removed, including those they made anew since.

    To run before `write_rows`; of no effect unless some event removes something.
    """
    fold = projection.select(events).subquery("fold")
    keys = [fold.c[column.name] for column in projection.table.primary_key]
    gone = select(*keys).where(fold.c.restarted).subquery("gone")
    return dialect.delete_matching(projection.table, gone)


def write_rows(projection: Projection, dialect: Dialect, events: Events) -> Insert:
    """Write the rows that exist after ``events``."""
    table = projection.table
    fold = projection.select(events).subquery("fold")
    columns = [column.name for column in table.columns]
    keys = {column.name for column in table.primary_key}
    source = select(*(fold.c[name] for name in columns)).where(fold.c.present)
    # In the order of the key, so that two transactions cannot wait for each other.
    source = source.order_by(*(fold.c[column.name] for column in table.primary_key))
    update = [name for name in columns if name not in keys | projection.kept]
    return dialect.upsert(table, columns, source, update)


def rows_of(projection: Projection, events: Events) -> AnySelect:
    """The rows of the read model as they are after ``events``, read without its table."""
    fold = projection.select(events).subquery("fold")
    columns = [fold.c[column.name] for column in projection.table.columns]
    return select(*columns).where(fold.c.present)


def can_remove(data: Mapping[str, Any]) -> bool:
    """Whether an event with this payload takes anything out of a read model."""
    return any(change[1] is None for change in data.get("changes", ()))


@dataclass(frozen=True)
class Difference:
    """A row on which a read model and the log disagree.

    Attributes:
        projection: The read model.
        key: The row's primary key.
        problem: ``"missing"``: the log says that it exists; ``"surplus"``: the log says that it
            does not; ``"different"``: its columns differ.
    """

    projection: str
    key: tuple[Any, ...]
    problem: str


def differences(projection: Projection, events: Events) -> AnySelect:
    """The rows that only the fold of ``events`` has (``expected``), or only the table.

    One statement, so that both sides are of the same moment; by EXCEPT, which sorts, where a join
    of a fold without an index would compare every row with every other.
    """
    table = projection.table
    expected = rows_of(projection, events)
    actual = select(*table.columns)
    missing = expected.except_(actual).subquery("missing")
    surplus = actual.except_(expected).subquery("surplus")
    keys = [column.name for column in table.primary_key]
    found = union_all(
        select(literal(1).label("expected"), *(missing.c[name] for name in keys)),
        select(literal(0), *(surplus.c[name] for name in keys)),
    ).subquery("found")
    return select(found)


def name_differences(projection: Projection, rows: Iterable[Sequence[Any]]) -> list[Difference]:
    """What the rows of `differences` say, in the order of the key."""
    sides: dict[tuple[Any, ...], set[int]] = {}
    for expected, *key in rows:
        sides.setdefault(tuple(key), set()).add(expected)
    problems = {frozenset({0, 1}): "different", frozenset({1}): "missing"}
    return [
        Difference(projection.name, key, problems.get(frozenset(found), "surplus"))
        for key, found in sorted(sides.items())
    ]
