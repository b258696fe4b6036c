"""Comparison of the read models with the fold of the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, func, literal, select, union_all

from eventmeta.dialects.events import EventRelation
from eventmeta.read_models.fold import asked_for, select_rows
from eventmeta.tables.tables import Tables
from projections import HANDOVER, AnySelect, Events, fold_handovers, fold_owners


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


@dataclass(frozen=True)
class Comparison:
    """The rows that a table should have by the log, and the rows that it has.

    Attributes:
        name: The read model.
        keys: The columns that identify a row.
        expected: The rows by the log.
        actual: The rows of the table, with the same columns.
    """

    name: str
    keys: tuple[str, ...]
    expected: AnySelect
    actual: AnySelect

    @classmethod
    def of_table(cls, name: str, table: Table, expected: AnySelect) -> Comparison:
        """Return the comparison of all rows of ``table`` with the ``expected`` ones."""
        keys = tuple(column.name for column in table.primary_key)
        return cls(name, keys, expected, select(*table.columns))

    def differences(self) -> AnySelect:
        """Return the query for the rows that only one side has: ``is_expected`` (1 or 0), the keys.

        It is one statement, so that both sides are of the same moment, and each side is computed
        once: the union holds a row twice if both sides have it.
        """
        columns = [column.name for column in self.expected.selected_columns]
        expected, actual = self.expected.subquery("expected"), self.actual.subquery("actual")
        sides: list[AnySelect] = [
            select(literal(1).label("is_expected"), *(expected.c[name] for name in columns)),
            select(literal(0), *(actual.c[name] for name in columns)),
        ]
        both = union_all(*sides).subquery("both")
        return (
            select(func.max(both.c.is_expected), *(both.c[name] for name in self.keys))
            .group_by(*(both.c[name] for name in columns))
            .having(func.count() == 1)
        )

    def named(self, rows: Iterable[Sequence[Any]]) -> list[Difference]:
        """Return the rows of `differences` as `Difference` objects, in the order of the key."""
        sides: dict[tuple[Any, ...], set[int]] = {}
        for expected, *key in rows:
            sides.setdefault(tuple(key), set()).add(expected)
        problems = {frozenset({0, 1}): "different", frozenset({1}): "missing"}
        return [
            Difference(self.name, key, problems.get(frozenset(found), "surplus"))
            for key, found in sorted(sides.items())
        ]


def comparisons(tables: Tables, events: EventRelation) -> list[Comparison]:
    """Return the comparisons of all that follows from ``events``.

    That is: the read models, the owner of each stream, and since when the owner sees it.
    """
    return [
        *(
            Comparison.of_table(each.name, each.table, select_rows(each, asked))
            for each, asked in asked_for(tables, events)
        ),
        _owners(tables, events),
        _handovers(tables, events),
        _owners_of_rows(tables, events),
    ]


def _owners(tables: Tables, events: Events) -> Comparison:
    heads = tables.streams
    actual = select(heads.c.stream_id, heads.c.stream_type, heads.c.user_id)
    return Comparison(
        "owners",
        ("stream_id", "stream_type"),
        fold_owners(events),
        actual.where(heads.c.user_id.is_not(None)),
    )


def _handovers(tables: Tables, events: Events) -> Comparison:
    heads = tables.streams
    actual = select(heads.c.stream_id, heads.c.stream_type, heads.c.version)
    return Comparison(
        "handovers",
        ("stream_id", "stream_type"),
        fold_handovers(events),
        actual.where(heads.c.stream_type == HANDOVER),
    )


def _owners_of_rows(tables: Tables, events: Events) -> Comparison:
    """Return the comparison of the owners that the rows of sessions name.

    A row made by upstream's class need not name its owner yet. No row may name another user.
    """
    sessions = tables.sessions
    owners = fold_owners(events).subquery("owners")
    named = select(sessions.c.session_id, owners.c.user_id).where(
        sessions.c.session_id == owners.c.stream_id,
        sessions.c.user_id.is_not(None),
        owners.c.stream_type == "session",
    )
    actual = select(sessions.c.session_id, sessions.c.user_id)
    return Comparison(
        "session_owners", ("session_id",), named, actual.where(sessions.c.user_id.is_not(None))
    )
