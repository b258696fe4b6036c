"""The order of items on MySQL and MariaDB, whose default times cannot be computed exactly."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Executable, FromClause, Table, Update, func, insert, select, update

from eventmeta.dialects.item_times import ItemTimes
from eventmeta.dialects.mysql.ddl import MySQLSchema
from projections import AnySelect


def read_current(query: AnySelect, *, waits: bool) -> AnySelect:
    """Return ``query`` reading what is committed now; a plain SELECT would read the snapshot."""
    return query.with_for_update(read=True, nowait=not waits)


class MySQLItemTimes(ItemTimes, MySQLSchema):
    """The statements that keep items in order on MySQL and MariaDB."""

    def insert_items(self, messages: Table, items: FromClause) -> Sequence[Executable]:
        """Insert ``items``, and select their ids, because MySQL has no RETURNING.

        No one else can add items to these sessions, whose rows are locked.
        """
        if self.is_mariadb:
            return super().insert_items(messages, items)
        source = select(items.c.session_id, items.c.message_data).order_by(items.c.n)
        return (
            insert(messages).from_select(["session_id", "message_data"], source),
            select(messages.c.session_id, messages.c.id).where(
                messages.c.id >= func.last_insert_id(),
                messages.c.session_id.in_(select(items.c.session_id)),
            ),
        )

    def items_ahead(self, messages: Table, sessions: FromClause, *, waits: bool) -> AnySelect:
        """Return a query for items that are out of order, because items get the default time.

        No other value is exact in the hour that comes twice.

        A plain SELECT would read the snapshot of the first one, which may be older than the lock on
        the session. This query locks only the last items of each session. If the INSERT read them,
        it would lock rows and gaps of other sessions too.
        """
        new, last, earlier = (messages.alias(name) for name in ("new", "last_item", "earlier"))
        last_before = (
            select(earlier.c.id)
            .where(earlier.c.session_id == sessions.c.session_id, earlier.c.id < sessions.c.first)
            .order_by(earlier.c.created_at.desc(), earlier.c.id.desc())
            .limit(1)
        )
        before = read_current(last_before, waits=waits).scalar_subquery()
        ends = select(sessions.c.first, before.label("id")).subquery("ends")
        moments = [func.unix_timestamp(item.c.created_at) for item in (last, new)]
        # A TIMESTAMP is compared as a moment; a later DATETIME may not be a moment.
        is_later = func.coalesce(moments[0] > moments[1], last.c.created_at > new.c.created_at)
        found = (
            select(ends.c.id, ends.c.first)
            .join(last, last.c.id == ends.c.id)
            .join(new, new.c.id == ends.c.first)
            .where(is_later)
        )
        return read_current(found, waits=waits)

    def move_items(self, messages: Table, moved: FromClause) -> Update:
        place = messages.alias("place")
        return (
            update(messages)
            .where(messages.c.id == moved.c.id, place.c.id == moved.c.at)
            .values(created_at=place.c.created_at)
        )
