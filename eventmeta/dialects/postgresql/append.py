"""The one statement that appends a batch on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eventmeta.dialects.base import LOCK_TIMEOUT_MS

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


def append_at_once(tables: Tables, projected: Sequence[str], *, with_items: bool) -> str:
    """Heads, events, session rows, items and read models of a whole batch.

    Parameters: ``$1`` the events and, ``with_items``, ``$2`` the items, as JSON record sets.
    Returns ``position, version, recorded_at, data`` of each event, in the order of ``n``.

    The order of evaluation is forced by what each part reads: ``fence`` counts the heads, so it
    runs when all of them are owned; positions and item ids are drawn from rows joined with
    ``fence``, so after the bound is announced. Heads are taken in the order of their key, so that
    two batches cannot deadlock.
    """
    log = tables.events.name
    last_value = f"CASE WHEN (SELECT count(*) FROM _heads) > 0 THEN ({last_position(log)}) END"
    parts = [
        _INPUT,
        f"""_settings AS MATERIALIZED (
  SELECT set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true)
)""",
        f"""_heads AS (
  INSERT INTO "{tables.streams.name}" AS head (stream_id, stream_type, version, recorded_at)
  SELECT stream_id, stream_type, count(*), clock_timestamp()
  FROM _input CROSS JOIN _settings GROUP BY stream_id, stream_type ORDER BY stream_id, stream_type
  ON CONFLICT (stream_id, stream_type) DO UPDATE SET
    version = head.version + excluded.version,
    recorded_at = greatest(head.recorded_at, clock_timestamp())
  RETURNING stream_id, stream_type, version, recorded_at
)""",
        f"""_fence AS MATERIALIZED (
  SELECT pg_advisory_xact_lock_shared({fence_key(log, last_value)})
)""",
        *(_items(tables) if with_items else []),
        f"""_numbered AS MATERIALIZED (
  SELECT nextval('{sequence_name(log)}') AS position, ordered.* FROM (
    SELECT _input.*, _heads.recorded_at, _heads.version + 1
      - row_number() OVER (PARTITION BY stream_id, stream_type ORDER BY n DESC) AS version
    FROM _input JOIN _heads USING (stream_id, stream_type) CROSS JOIN _fence ORDER BY n OFFSET 0
  ) AS ordered
)""",
        _sessions(tables, with_items=with_items),
        f"""_appended AS (
  INSERT INTO "{log}" (position, stream_type, stream_id, version, event_id, type, data, actor,
    context, recorded_at)
  SELECT position, stream_type, stream_id, version, event_id, type, {_data(with_items)}, actor,
    context, recorded_at
  FROM _numbered
  RETURNING position, stream_type, stream_id, version, event_id, type, data, actor, context,
    recorded_at
)""",
        *(f"projected_{i} AS (\n{statement}\n)" for i, statement in enumerate(projected)),
    ]
    return (
        "WITH " + ", ".join(parts) + "\nSELECT position, version, recorded_at, data "
        "FROM _appended ORDER BY position"
    )


_INPUT = """_input AS MATERIALIZED (
  SELECT * FROM json_to_recordset(CAST($1 AS json)) AS r (n int, stream_type varchar,
    stream_id varchar, event_id uuid, type varchar, data text, actor varchar, context text,
    creates boolean)
)"""


def _items(tables: Tables) -> list[str]:
    """Items get ids in the order of ``n``, and the time of their stream, which never goes back."""
    messages = f'"{tables.messages.name}"'
    return [
        f"""_items AS MATERIALIZED (
  SELECT nextval(pg_get_serial_sequence('{messages}', 'id')) AS id, ordered.* FROM (
    SELECT r.*, _heads.recorded_at FROM json_to_recordset(CAST($2 AS json))
      AS r (n int, event int, session_id varchar, message_data text)
    JOIN _heads ON _heads.stream_id = r.session_id AND _heads.stream_type = 'session'
    CROSS JOIN _fence ORDER BY r.n OFFSET 0
  ) AS ordered
)""",
        f"""_added AS (
  INSERT INTO {messages} (id, session_id, message_data, created_at)
  SELECT id, session_id, message_data, CAST(recorded_at AS timestamp) FROM _items
)""",
    ]


def _data(with_items: bool) -> str:
    if not with_items:
        return "data"
    own = "FROM _items WHERE _items.event = _numbered.n"
    ids = f"(SELECT string_agg(CAST(id AS text), ',' ORDER BY id) {own})"
    return f"""CASE type WHEN 'items_added' THEN '{{"item_ids":[' || {ids} || ']}}' ELSE data END"""


def _sessions(tables: Tables, *, with_items: bool) -> str:
    sessions = f'"{tables.sessions.name}"'
    touch = (
        f"""DO UPDATE SET updated_at = excluded.updated_at
  WHERE {sessions}.session_id IN (SELECT session_id FROM _items)"""
        if with_items
        else "DO NOTHING"
    )
    return f"""_created AS (
  INSERT INTO {sessions} (session_id) SELECT DISTINCT stream_id FROM _input WHERE creates
  ORDER BY stream_id ON CONFLICT (session_id) {touch}
)"""
