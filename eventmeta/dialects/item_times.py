"""The times of items and sessions, by which upstream's classes order them.

Items are read in the order of ``created_at`` and ``id``. So the time of a new item is that of the
clock in UTC, but never before the time of any other item of the session: a clock may have gone
back, another process may have another time zone, and a time in the future stays as it is. Items of
the same time are ordered by their ids, because ids are drawn while the session's row is locked.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Executable, FromClause, Table, Update, insert, select

from projections import AnySelect


class ItemTimes(ABC):  # noqa: B024
    """The statements that keep the times of items in order."""

    @property
    def utc_now(self) -> ColumnElement[datetime] | None:
        """Return the clock in UTC, as upstream's tables hold it; None if it is their default."""
        return None

    def time_of_new_item(
        self, messages: Table, items: FromClause
    ) -> ColumnElement[datetime] | None:
        """Return the time of each of ``items``; None if the default is right.

        It is not before the last time of the session in ``messages``.
        """
        return None

    def insert_items(self, messages: Table, items: FromClause) -> Sequence[Executable]:
        """Insert ``items`` in the order of ``n``; the last statement yields their ids."""
        values: dict[str, ColumnElement[Any]]
        values = {name: items.c[name] for name in ("session_id", "message_data")}
        time = self.time_of_new_item(messages, items)
        if time is not None:
            values["created_at"] = time
        source = select(*values.values()).order_by(items.c.n)
        added = insert(messages).from_select([*values], source)
        return (added.returning(messages.c.session_id, messages.c.id),)

    def items_ahead(
        self, messages: Table, sessions: FromClause, *, waits: bool
    ) -> AnySelect | None:
        """Return a query for items that must come after an earlier item: ``id, first``.

        Those from ``first`` on must come after the item ``id``. There is a row for each of
        ``sessions`` that has an item before ``first`` with a later time. None if `insert_items`
        prevents this. ``waits`` as for `current`.
        """
        return None

    def move_items(self, messages: Table, moved: FromClause) -> Update | None:
        """Give each item ``moved.id`` exactly the time of the item ``moved.at``."""
        return None


def last_time(messages: Table, session_id: ColumnElement[str]) -> ColumnElement[datetime]:
    """Return the latest time of a session's items, from the end of an index; NULL if none."""
    last = messages.alias("last_item")
    return (
        select(last.c.created_at)
        .where(last.c.session_id == session_id)
        .order_by(last.c.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
