"""Checks of a projection before it is registered."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

from sqlalchemy import Table, UniqueConstraint

from eventmeta.core.projection_errors import InvalidProjection
from eventmeta.core.validation import check_event_type, check_table_name
from eventmeta.dialects.base import Dialect
from eventmeta.read_models.fold import delete_rows, upsert_rows
from eventmeta.tables.names import RESERVED_ENDINGS
from eventmeta.tables.tables import Tables
from projections import AppliedProjection, Projection

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_projection(projection: Any, store: Tables, dialect: Dialect) -> None:
    """Refuse a projection that the store cannot keep up to date.

    Raises:
        InvalidProjection: The projection cannot be used. The error says what is wrong.
    """
    if not isinstance(projection, Projection | AppliedProjection):
        raise InvalidProjection(
            f"{projection!r} is no projection: make a projections.Projection, with a Select, or a "
            "projections.AppliedProjection, with a function"
        )
    _check_identity(projection)
    _check_events(projection)
    _check_tables(projection)
    if isinstance(projection, Projection):
        _check_select(projection, store, dialect)
    elif not callable(projection.apply):
        raise InvalidProjection(
            f"apply of projection {projection.name!r} is {projection.apply!r}: give an async "
            "function"
        )


def _check_identity(projection: Any) -> None:
    name, version = projection.name, projection.version
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidProjection(
            f"the name {name!r} cannot be used: take up to 64 lower-case letters, digits and "
            "underscores, a letter first"
        )
    if type(version) is not int or version < 1:
        raise InvalidProjection(
            f"version {version!r} of projection {name!r} is not a version: give 1, 2, 3 …"
        )


def _check_events(projection: Any) -> None:
    name, kinds = projection.name, projection.event_types
    if projection.stream_type not in ("session", "user"):
        raise InvalidProjection(
            f"projection {name!r} follows streams of type {projection.stream_type!r}: there are "
            "'session' and 'user'"
        )
    if isinstance(kinds, str) or not isinstance(kinds, Collection) or not kinds:
        raise InvalidProjection(
            f"the event_types of projection {name!r} are {kinds!r}: give a frozenset of one or more"
        )
    for kind in cast("Collection[object]", kinds):
        check_event_type(kind)


def _check_tables(projection: Any) -> None:
    name, tables = projection.name, projection.tables
    if not isinstance(tables, tuple) or not tables:
        raise InvalidProjection(f"projection {name!r} has no tuple of tables: give it at least one")
    names: set[str] = set()
    for table in cast("tuple[Table, ...]", tables):
        if not isinstance(table, Table):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProjection(
                f"projection {name!r} has {table!r} among its tables: give a sqlalchemy.Table"
            )
        _check_table(table, name)
        if table.name.lower() in names:
            raise InvalidProjection(f"projection {name!r} has two tables of one name: rename one")
        names.add(table.name.lower())


def _check_table(table: Table, projection: str) -> None:
    check_table_name(table.name)
    which = f"table {table.name!r} of projection {projection!r}"
    if table.name.lower().endswith(RESERVED_ENDINGS):
        raise InvalidProjection(f"{which} has an ending that rebuilds use: give it another name")
    if table.schema is not None:
        raise InvalidProjection(
            f"{which} is in schema {table.schema!r}, but the store's tables are in that of the "
            "connection: leave the schema out"
        )
    if not table.primary_key.columns:
        raise InvalidProjection(
            f"{which} has no primary key: give it one, so that its rows can be found"
        )
    if table.foreign_keys:
        raise InvalidProjection(
            f"{which} has a foreign key, which could change its rows without an event: leave the "
            "key out"
        )


def _check_select(projection: Projection, store: Tables, dialect: Dialect) -> None:
    name, table = projection.name, projection.table
    unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    if unique or any(index.unique for index in table.indexes):
        raise InvalidProjection(
            f"table {table.name!r} of projection {name!r} has a unique key besides its primary "
            "key: its rows are written by the primary key alone, so leave the other key out"
        )
    missing = projection.kept - set(table.columns.keys())
    if missing:
        raise InvalidProjection(
            f"projection {name!r} keeps {sorted(missing)}, which are not columns of its table"
        )
    events = dialect.relation(store.events).of(projection)
    try:
        dialect.compile(delete_rows(projection, dialect, events))
        dialect.compile(upsert_rows(projection, dialect, events))
    except Exception as error:
        raise InvalidProjection(
            f"the Select of projection {name!r} cannot be used ({type(error).__name__}: {error}): "
            f"it must yield the columns of {table.name!r}, present and restarted"
        ) from error
