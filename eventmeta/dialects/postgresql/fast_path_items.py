"""The tables of conversations and tool calls within the one statement that appends a batch."""

from __future__ import annotations

from collections.abc import Sequence

from eventmeta.dialects.postgresql.fast_path import Quoted
from eventmeta.tables.tables import Tables


def structure_parts(
    tables: Tables, quoted: Quoted, states: str, items: str, writes: Sequence[str]
) -> list[str]:
    """Return the parts of the statement that keep the tables of items.

    ``states`` and ``items`` read the statement's snapshot, which may be older than the locks that
    it waited for. So the heads as they were when locked are compared with the snapshot's. If they
    differ, or the tables are not as they should be, the statement fails as in a conflict. Then the
    batch is repeated in several statements, which see everything and correct the tables.

    The condition is that the stream type is not that of users: for an equality, the planner expects
    so few rows that it would read all sessions for each item.
    """
    return [
        f"""_touched AS MATERIALIZED (
  SELECT stream_id AS session_id, _times.at,
    version - own.events <> coalesce((
      SELECT version FROM {quoted(tables.streams.name)} AS seen
      WHERE seen.stream_id = _heads.stream_id AND seen.stream_type = 'session'
    ), 0) AS moved
  FROM _heads JOIN (
    SELECT stream_id, count(*) AS events FROM _input WHERE stream_type <> 'user' GROUP BY stream_id
  ) AS own USING (stream_id) JOIN _times ON _times.session_id = stream_id
  WHERE stream_type <> 'user' AND stream_id IN (SELECT session_id FROM _items)
)""",
        f"_states AS MATERIALIZED (\n{states}\n)",
        f"""_new_items AS MATERIALIZED (
  SELECT _items.id, _items.session_id, _items.message_data, _input.context,
    _items.created_at,
    _states.turn AS turn_before, _states.parent AS parent_before
  FROM _items JOIN _input ON _input.n = _items.event
  JOIN _states USING (session_id)
  WHERE {quoted(f"{tables.messages.name}_follows")}(_states.stale = 0)
)""",
        f"_turned AS MATERIALIZED (\n{items}\n)",
        *(f"structured_{i} AS (\n{statement}\n)" for i, statement in enumerate(writes)),
    ]


def structure_functions(tables: Tables, quoted: Quoted) -> dict[str, str]:
    """Return the DDL of the function that fails unless the tables can be continued."""
    name = f"{tables.messages.name}_follows"
    return {
        name: f"""CREATE OR REPLACE FUNCTION {quoted(name)}(follows boolean)
RETURNS boolean LANGUAGE plpgsql AS $follows$
BEGIN
  IF NOT follows THEN
    RAISE EXCEPTION 'someone else wrote to the session' USING ERRCODE = '40001';
  END IF;
  RETURN TRUE;
END $follows$"""
    }
