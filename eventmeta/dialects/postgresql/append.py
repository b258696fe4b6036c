"""The one statement that appends a batch on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eventmeta.dialects.base import LOCK_TIMEOUT_MS
from projections import NOBODY, Projection
from projections.types import UtcDateTime

if TYPE_CHECKING:
    from eventmeta.tables import Tables


def sequence_name(log: str) -> str:
    """The sequence that positions are drawn from."""
    return f'"{log}_position_seq"'


def namespace(log: str) -> str:
    """15 bits that tell the locks of this log from those of others in the database."""
    return f"""'"{log}"'::regclass::oid::bigint & 32767"""


def last_position(log: str) -> str:
    """The last position drawn: of a new sequence, `last_value` is the one that comes next."""
    return f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence_name(log)}"


def fence_key(log: str, last_value: str | None = None) -> str:
    """The advisory lock that announces a bound: 16 bits of namespace, 48 of position."""
    last_value = last_value or f"({last_position(log)})"
    return f"({namespace(log)}) << 48 | {last_value}"


def append_at_once(
    tables: Tables,
    projected: Sequence[str],
    *,
    with_items: bool,
    for_users: bool,
    structure: Sequence[str] = (),
    folded: Projection | None = None,
) -> str:
    """Heads, events, session rows, items and read models of a whole batch.

    Parameters: ``$1`` the events and, ``with_items``, ``$2`` the items, as JSON record sets; then
    the columns of the ``folded`` rows, a JSON array of texts each, without those that hold times.
    Returns ``stream_id, position, version, recorded_at, data`` of each event, in their order.

    What is written on behalf of a ``user_id`` is left out unless the session is that user's: in the
    snapshot, for nothing is inserted for a user, and in the row that is then locked. All that
    follows is driven by the heads that are left, so the session may not be another's meanwhile.

    The order of evaluation is forced by what each part reads: ``fence`` counts the heads, so it
    runs when all of them are owned; positions and item ids are drawn from rows joined with
    ``fence``, so after the bound is announced. Heads are taken in the order of their key, so that
    two batches cannot deadlock.
    """
    log = tables.events.name
    last_value = f"CASE WHEN (SELECT count(*) FROM _heads) > 0 THEN ({last_position(log)}) END"
    parts = [
        _input(for_users=for_users),
        f"""_settings AS MATERIALIZED (
  SELECT set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true)
)""",
        _heads(tables, for_users=for_users),
        f"""_fence AS MATERIALIZED (
  SELECT pg_advisory_xact_lock_shared({fence_key(log, last_value)})
)""",
        *(_items(tables) if with_items else []),
        f"""_numbered AS MATERIALIZED (
  SELECT nextval('{sequence_name(log)}') AS position, ordered.* FROM (
    SELECT _input.*, _heads.recorded_at, _heads.version - later AS version FROM _input
    JOIN _heads USING (stream_id, stream_type) CROSS JOIN _fence ORDER BY n OFFSET 0
  ) AS ordered
)""",
        _sessions(tables, with_items=with_items),
        _appended(log, with_items=with_items),
        *(f"projected_{i} AS (\n{statement}\n)" for i, statement in enumerate(projected)),
        *([_folded(folded, 3 if with_items else 2)] if folded else []),
        *structure,
    ]
    return (
        "WITH " + ", ".join(parts) + "\nSELECT stream_id, position, version, recorded_at, "
        "data FROM _appended ORDER BY position"
    )


def _input(*, for_users: bool) -> str:
    return f"""_input AS MATERIALIZED (
  SELECT * FROM json_to_recordset(CAST($1 AS json)) AS r (n int, stream_type varchar,
    stream_id varchar, event_id uuid, type varchar, data text, actor varchar, context text,
    creates boolean, later int{", user_id varchar" if for_users else ""})
)"""


def _heads(tables: Tables, *, for_users: bool) -> str:
    heads = f'"{tables.streams.name}"'
    user_id, owned, still_owned = "NULL", "", ""
    if for_users:
        user_id = "min(user_id)"
        owned = f"""WHERE user_id IS NULL OR user_id = (SELECT own.user_id FROM {heads} AS own
    WHERE own.stream_id = _input.stream_id AND own.stream_type = _input.stream_type)"""
        still_owned = "WHERE excluded.user_id IS NULL OR head.user_id = excluded.user_id"
    return f"""_heads AS (
  INSERT INTO {heads} AS head (stream_id, stream_type, version, recorded_at, user_id)
  SELECT stream_id, stream_type, count(*), clock_timestamp(), {user_id}
  FROM _input CROSS JOIN _settings {owned}
  GROUP BY stream_id, stream_type ORDER BY stream_id, stream_type
  ON CONFLICT (stream_id, stream_type) DO UPDATE SET
    version = head.version + excluded.version,
    recorded_at = greatest(head.recorded_at, clock_timestamp()) {still_owned}
  RETURNING stream_id, stream_type, version, recorded_at, user_id
)"""


def _items(tables: Tables) -> list[str]:
    """Items get ids in the order of ``n``, and the time of their stream, which never goes back."""
    messages = f'"{tables.messages.name}"'
    return [
        f"""_items AS MATERIALIZED (
  SELECT nextval((SELECT CAST(pg_get_serial_sequence('{messages}', 'id') AS regclass))) AS id,
    ordered.* FROM (
    SELECT r.*, _heads.recorded_at FROM json_to_recordset(CAST($2 AS json))
      AS r (n int, event int, session_id varchar, message_data text)
    JOIN _heads ON _heads.stream_id = r.session_id AND _heads.stream_type <> 'user'
    CROSS JOIN _fence ORDER BY r.n OFFSET 0
  ) AS ordered
)""",
        f"""_added AS (
  INSERT INTO {messages} (id, session_id, message_data, created_at)
  SELECT id, session_id, message_data, CAST(recorded_at AS timestamp) FROM _items
)""",
        # One object, for of a join the planner expects so little that it would try all pairs.
        """_item_ids AS MATERIALIZED (
  SELECT jsonb_object_agg(event, ids) AS by_event FROM (
    SELECT event, string_agg(CAST(id AS text), ',' ORDER BY id) AS ids FROM _items GROUP BY event
  ) AS own
)""",
    ]


def _appended(log: str, *, with_items: bool) -> str:
    return f"""_appended AS (
  INSERT INTO "{log}" (position, stream_type, stream_id, version, event_id, type, data, actor,
    context, recorded_at)
  SELECT position, stream_type, stream_id, version, event_id, type, {_data(with_items)}, actor,
    context, recorded_at
  FROM _numbered
  RETURNING position, stream_type, stream_id, version, event_id, type, data, actor, context,
    recorded_at
)"""


def _data(with_items: bool) -> str:
    if not with_items:
        return "data"
    ids = "((SELECT by_event FROM _item_ids) ->> CAST(n AS text))"
    return f"""CASE type WHEN 'items_added' THEN '{{"item_ids":[' || {ids} || ']}}' ELSE data END"""


def _sessions(tables: Tables, *, with_items: bool) -> str:
    sessions = f'"{tables.sessions.name}"'
    touch = (
        f"""DO UPDATE SET updated_at = excluded.updated_at, user_id = excluded.user_id
  WHERE {sessions}.session_id IN (SELECT session_id FROM _items)"""
        if with_items
        else "DO NOTHING"
    )
    return f"""_created AS (
  INSERT INTO {sessions} (session_id, user_id)
  SELECT stream_id, nullif(_heads.user_id, '{NOBODY}') FROM _heads
  WHERE stream_id IN (SELECT stream_id FROM _input WHERE creates)
  ORDER BY stream_id ON CONFLICT (session_id) {touch}
)"""


def _folded(projection: Projection, first: int) -> str:
    columns = list(projection.table.columns)
    given = [f'"{each.name}"' for each in columns if not isinstance(each.type, UtcDateTime)]
    texts = (f"json_array_elements_text(CAST(${n} AS json))" for n, _ in enumerate(given, first))
    keys = [f'"{column.name}"' for column in projection.table.primary_key]
    update = (f'"{name}" = excluded."{name}"' for name in projection.overwritten)
    times = ("_heads.recorded_at" for _ in columns[len(given) :])
    return f"""_folded AS (
  INSERT INTO "{projection.table.name}" ({", ".join(f'"{each.name}"' for each in columns)})
  SELECT {", ".join(given)}, {", ".join(times)}
  FROM ROWS FROM ({", ".join(texts)}) AS given ({", ".join(given)})
  JOIN _heads ON _heads.stream_id = given.{keys[0]}
    AND _heads.stream_type = '{projection.stream_type}'
  ORDER BY {", ".join(keys)}
  ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {", ".join(update)}
)"""
