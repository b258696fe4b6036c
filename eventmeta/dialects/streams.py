"""Owning the heads of streams, and how long a write waits for one that another transaction owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sqlalchemy import Executable, FromClause, Table, and_, case, func, literal_column, or_, select

from eventmeta.tables.tables import Tables
from projections import AnySelect

LOCK_TIMEOUT_MS = 5_000
"""How long a write waits for a lock that another transaction holds, at each attempt."""

SHORT_WAIT_MS = 50
"""The same of a write that others share: longer than the writers to one session wait in turn."""


class StreamSQL(ABC):
    """How a transaction gets to own what it writes to."""

    def current(self, query: AnySelect, *, waits: bool = True) -> AnySelect:
        """``query``, reading what is committed now even where the transaction began earlier.

        Args:
            query: The query.
            waits: Whether it waits for rows that an open transaction holds, or fails at once.
        """
        return query

    def locked(self, query: AnySelect, *, waits: bool, key_share: bool = False) -> AnySelect:
        """Lock the rows of ``query``; ``waits`` as for `current`, where nothing else limits it."""
        return query.with_for_update(key_share=key_share)

    @abstractmethod
    def lock_streams(self, tables: Tables, keys: FromClause, *, waits: bool) -> Executable:
        """Own the heads named by ``keys`` until the transaction ends, those within reach only.

        Whose a session is, is looked up first without a lock, so that nobody locks what is
        another's. Heads that do not exist are not made.

        Args:
            tables: The store's tables.
            keys: ``stream_id, stream_type``, on behalf of which ``user_id`` (NULL for the
                administrator), whether that user ``claims`` what nobody owns (0 or 1), and
                whether the row of the session or user is written as well (``locks_row``). In
                the order of the key; a stream may come for several users.
            waits: Whether it waits for a head that is held by an open transaction. Otherwise it
                passes over it, and over rows to be written that are.

        Returns:
            A query for ``stream_id, stream_type``; ``exists``: whether there is a row of the
            session or user; ``seen_version, seen_user_id`` of the head as looked up, NULL without
            one; ``version, recorded_at, user_id`` of the head that is owned, else NULL;
            ``held``: whether something within reach was passed over; ``now``, by the database's
            clock, NULL where that is the client's.
        """

    def add_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """Make heads for ``keys``, and own them, until the transaction ends.

        The last statement yields ``stream_id, stream_type, version, recorded_at, user_id, now``;
        the version is not 0 where another transaction was faster. No statement at all where a
        transaction owns what is missing.
        """
        return ()


def seen_streams(tables: Tables, keys: FromClause) -> AnySelect:
    """What is there of ``keys``, without a lock: the head, the row, and whether it is in reach."""
    heads, sessions, users = tables.streams.alias("seen"), tables.sessions, tables.users.table
    claimant = case((keys.c.claims == literal_column("1"), keys.c.user_id))
    owner = func.coalesce(heads.c.user_id, claimant)
    reached = or_(keys.c.user_id.is_(None), owner == keys.c.user_id)
    is_session = keys.c.stream_type == literal_column("'session'")
    same = and_(heads.c.stream_id == keys.c.stream_id, heads.c.stream_type == keys.c.stream_type)
    rows = (
        keys.outerjoin(heads, same)
        .outerjoin(sessions, and_(is_session, sessions.c.session_id == keys.c.stream_id))
        .outerjoin(users, and_(~is_session, users.c.user_id == keys.c.stream_id))
    )
    to_lock = and_(reached, keys.c.locks_row == literal_column("1"))
    return (
        select(
            keys.c.stream_id,
            keys.c.stream_type,
            func.coalesce(sessions.c.session_id, users.c.user_id).label("row_id"),
            heads.c.version.label("seen_version"),
            heads.c.user_id.label("seen_user_id"),
            case((reached, heads.c.stream_id)).label("head_to_lock"),
            case((to_lock, sessions.c.session_id)).label("session_to_lock"),
            case((to_lock, users.c.user_id)).label("user_to_lock"),
        )
        .select_from(rows)
        .order_by(keys.c.stream_id, keys.c.stream_type)
    )
