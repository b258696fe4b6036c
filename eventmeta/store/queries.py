"""Questions about all sessions: which have a value, and what their runs have used."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from eventmeta.core.events import Position
from eventmeta.core.usage import GroupedUsage
from eventmeta.queries.sessions import find_sessions
from eventmeta.queries.usage import (
    UsageGroup,
    check_group,
    check_structured,
    check_time,
    grouped_usage,
)
from eventmeta.store.handle import StoreHandle


class StoreQueries(StoreHandle):
    """The part of a store that answers questions."""

    async def find_sessions_by_metadata(
        self,
        key: str,
        value: Any,
        limit: int | None = 100,
        *,
        after: str | None = None,
        as_of: int | Position | datetime | None = None,
    ) -> list[str]:
        """Return the ids of the sessions whose ``key`` equals ``value`` as JSON.

        1 equals 1.0, but not true. On behalf of a user, only sessions that the user owns are found.

        Args:
            key: The metadata key.
            value: Any JSON value.
            limit: The maximum number of ids; None for all.
            after: A cursor: only ids that come after this one in the database's order. Pass the
                last id of a page to get the next page.
            as_of: A position of the log, or an aware datetime, at which ``key`` had this value.
                The search then reads the log. Without ``as_of`` it reads an index of the present.

        Raises:
            InvalidInput: An argument cannot be used, or ``as_of`` names no point in history.
        """
        self._check_open()
        return await find_sessions(self._view, key, value, limit, after, as_of)

    async def get_usage(
        self,
        group_by: UsageGroup | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[GroupedUsage]:
        """Return what runs have used, summed up by the database.

        On behalf of a user, only usage in sessions that the user owns is counted.

        Args:
            group_by: ``"user"``, ``"agent"``, ``"model"``, ``"day"`` (in UTC) or ``"session"``; one
                sum of all usage if None. The user is the one to whom the session's handle was
                bound, or else the session's owner. Agent and model are known only for runs with
                `UsageHooks`.
            since: Only usage that was recorded at this time or later.
            until: Only usage that was recorded before this time.

        Returns:
            One `GroupedUsage` for each group, in the order of the groups' keys.

        Raises:
            InvalidInput: ``group_by`` is not known, or a time is naive.
            StructuredMetadataOff: The table of used tokens is not kept.
        """
        group = check_group(group_by)
        times = check_time("since", since), check_time("until", until)
        await check_structured(self._log.database, "get_usage()")
        await self._connected()
        return await grouped_usage(self._view, group, *times)
