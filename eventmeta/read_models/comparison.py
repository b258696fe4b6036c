"""What the read models should hold by the log, compared with what they hold."""

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
    """What a table should hold by the log, and what it holds.

    Attributes:
        name: The read model.
        keys: The columns that tell its rows apart.
        expected: Its rows by the log.
        actual: Its rows, with the same columns.
    """

    name: str
    keys: tuple[str, ...]
    expected: AnySelect
    actual: AnySelect

    @classmethod
    def of_table(cls, name: str, table: Table, expected: AnySelect) -> Comparison:
        """All rows of ``table`` with those that are ``expected``."""
        keys = tuple(column.name for column in table.primary_key)
        return cls(name, keys, expected, select(*table.columns))

    def differences(self) -> AnySelect:
        """The rows that only one side has: ``expected`` (1 or 0), and the keys.

        One statement, so that both sides are of the same moment, and each is computed once: of a
        row that both have there are two.
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
        """What the rows of `differences` say, in the order of the key."""
        sides: dict[tuple[Any, ...], set[int]] = {}
        for expected, *key in rows:
            sides.setdefault(tuple(key), set()).add(expected)
        problems = {frozenset({0, 1}): "different", frozenset({1}): "missing"}
        return [
            Difference(self.name, key, problems.get(frozenset(found), "surplus"))
            for key, found in sorted(sides.items())
        ]


def comparisons(tables: Tables, events: EventRelation) -> list[Comparison]:
    """All that follows from ``events``: the read models, whose each stream is, and since when."""
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
    """A row that upstream made does not name its owner yet, but none may name another."""
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
