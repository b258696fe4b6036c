"""When an event is recorded, whatever has become of the clock since the last one.

The time of an event is that of the database's clock (on SQLite, of the process's), and clocks are
set, corrected, or wrong. Order is never taken from them: it is that of versions and positions.

The rule: an event is recorded now, but not before the last event of its stream, as long as that is
ahead of the clock by no more than `MAX_AHEAD`. A last event that is further ahead was recorded by a
clock that was wrong; from then on the stream has the real time again, so its times go back there,
once. What was recorded by a moment is therefore not said by the times alone: see
`eventmeta.moments`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

MAX_AHEAD = timedelta(seconds=5)
"""How far a stream's last event may be ahead of the clock for the next one to wait for it."""


def time_of_next(last: datetime | None, now: datetime) -> datetime:
    """Return when the next event of a stream is recorded.

    Args:
        last: When its last event was; None if it has none.
        now: What the clock says.
    """
    return last if last is not None and now < last <= now + MAX_AHEAD else now
