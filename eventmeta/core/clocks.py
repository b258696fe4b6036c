"""The time at which an event is recorded, even if the clock was set back or is wrong.

An event's time is that of the database's clock (on SQLite, of the process's clock), and clocks are
set, corrected, or wrong. Order never depends on time: it is that of versions and positions.

The rule: an event is recorded at the current time, but not before the last event of its stream, if
that event is ahead of the clock by no more than `MAX_AHEAD`. If the last event is further ahead, a
wrong clock recorded it. The next event then has the clock's time again, so the times of the stream
go back there, once. So the times alone do not say which events had been recorded at a moment: see
`eventmeta.queries.moments`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

MAX_AHEAD = timedelta(seconds=5)
"""The most by which a stream's last event may be ahead for the next event to have its time."""


def time_of_next(last: datetime | None, now: datetime) -> datetime:
    """Return the time at which the next event of a stream is recorded.

    Args:
        last: The time of the stream's last event; None if it has none.
        now: The time by the clock.
    """
    return last if last is not None and now < last <= now + MAX_AHEAD else now
