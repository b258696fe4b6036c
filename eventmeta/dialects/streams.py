"""Locking the heads of streams, and how long a write waits for one that is locked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sqlalchemy import Executable, FromClause, Table, and_, case, func, literal_column, or_, select

from eventmeta.tables.tables import Tables
from projections import AnySelect

LOCK_TIMEOUT_MS = 5_000
"""Milliseconds that a write waits for a lock of another transaction, at each attempt."""

SHORT_WAIT_MS = 50
"""Milliseconds that a write in a shared batch waits: more than a session's writers need."""


class StreamSQL(ABC):
    """The SQL with which a transaction locks the streams that it writes to."""

    def current(self, query: AnySelect, *, waits: bool = True) -> AnySelect:
        """Return ``query`` reading what is committed now, even if the transaction is older.

        Args:
            query: The query.
            waits: Whether it waits for rows that an open transaction holds, or fails at once.
        """
        return query

    def locked(self, query: AnySelect, *, waits: bool, key_share: bool = False) -> AnySelect:
        """Lock the rows of ``query``; ``waits`` as for `current`, unless a timeout limits it."""
        return query.with_for_update(key_share=key_share)

    @abstractmethod
    def lock_streams(self, tables: Tables, keys: FromClause, *, waits: bool) -> Executable:
        """Lock the heads named by ``keys`` that the principal can see, until the transaction ends.

        The owner is looked up first without a lock, so that nobody locks a stream of another user.
        Heads that do not exist are not made.

        Args:
            tables: The store's tables.
            keys: ``stream_id, stream_type``; ``user_id``: on whose behalf (NULL for the
                administrator); ``claims``: whether that user claims streams that nobody owns (0 or
                1); ``locks_row``: whether the row of the session or user is written as well. In the
                order of the key; a stream may come for several users.
            waits: Whether it waits for a head that an open transaction holds. If False, it skips
                such heads, and such rows to be written.

        Returns:
            A query for ``stream_id, stream_type``; ``exists``: whether there is a row of the
            session or user; ``seen_version, seen_user_id`` of the head as looked up, NULL without
            one; ``version, recorded_at, user_id`` of the head that is locked, else NULL;
            ``held``: whether something that the principal can see was skipped; ``now``, by the
            database's clock, NULL if the client's clock counts.
        """

    def add_streams(self, streams: Table, keys: FromClause) -> Sequence[Executable]:
        """Make heads for ``keys``, and lock them, until the transaction ends.

        The last statement yields ``stream_id, stream_type, version, recorded_at, user_id, now``;
        the version is not 0 if another transaction was faster. There is no statement at all if a
        transaction locks missing heads already.
        """
        return ()


def seen_streams(tables: Tables, keys: FromClause) -> AnySelect:
    """Look ``keys`` up without a lock: the head, the row, and what the principal may lock."""
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
