"""The one statement that appends a batch on PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from eventmeta.core.clocks import MAX_AHEAD
from eventmeta.dialects.streams import SHORT_WAIT_MS
from eventmeta.tables.tables import Tables
from projections import NOBODY, Projection
from projections.types import UtcDateTime

INCOMPLETE = re.compile(r"rows inserted: (\d+) of (\d+)")
"""A pattern for the text of the error with which the statement undoes itself."""


Quoted = Callable[[str], str]
"""A function that gives a name its schema and its quotes."""


def sequence_name(log: str) -> str:
    """Return the name of the sequence from which positions are drawn."""
    return f"{log}_position_seq"


def in_text(quoted_name: str) -> str:
    """Return a name in quotes as a text, from which a regclass is made."""
    return "'" + quoted_name.replace("'", "''") + "'"


def namespace(log: str, quoted: Quoted) -> str:
    """Return 15 bits that tell the locks of this log from those of other logs in the database."""
    return f"{in_text(quoted(log))}::regclass::oid::bigint & 32767"


def last_position(log: str, quoted: Quoted) -> str:
    """Return a query for the last position drawn.

    If none was drawn from a sequence yet, its `last_value` is the first to come.
    """
    sequence = quoted(sequence_name(log))
    return f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}"


def fence_key(log: str, quoted: Quoted, last_value: str | None = None) -> str:
    """Return the key of the lock that announces a bound: 16 bits of namespace, 48 of position."""
    last_value = last_value or f"({last_position(log, quoted)})"
    return f"({namespace(log, quoted)}) << 48 | {last_value}"


def append_in_one_statement(
    tables: Tables,
    quoted: Quoted,
    projected: Sequence[str],
    *,
    with_items: bool,
    for_users: bool,
    structure: Sequence[str] = (),
    folded: Projection | None = None,
) -> str:
    """Return the statement for heads, events, session rows, items and read models of a batch.

    Parameters: ``$1`` is the events and, ``with_items``, ``$2`` the items, as JSON record sets;
    then come the columns of the ``folded`` rows, a JSON array of texts each, without those that
    hold times. The statement returns ``stream_id, position, version, recorded_at, data`` of each
    event, in their order.

    If a session written to on behalf of a ``user_id`` is not that user's in the snapshot, nothing
    is done at all: anything left out here is done later, and must not be overtaken by later
    commands. A session that has been handed over meanwhile, as its locked row shows, is left out;
    there is nothing left to do for it. All that follows depends on the heads.

    The order of evaluation is forced by what each part reads. ``fence`` counts the heads, so it
    runs when all of them are locked. Positions are drawn from rows joined with ``fence``, so they
    are drawn after the bound is announced. Item ids come from rows joined with ``created``, so they
    are drawn while the session's row is locked, which upstream's writers lock as well. Heads are
    locked in the order of their key, so that two batches cannot deadlock.
    """
    log = tables.events.name
    last_value = last_position(log, quoted)
    last_value = f"CASE WHEN (SELECT count(*) FROM _heads) > 0 THEN ({last_value}) END"
    parts = [
        _input(for_users=for_users),
        f"""_settings AS MATERIALIZED (
  SELECT set_config('lock_timeout', '{SHORT_WAIT_MS}', true)
)""",
        _heads(quoted(tables.streams.name), for_users=for_users),
        f"""_fence AS MATERIALIZED (
  SELECT pg_advisory_xact_lock_shared({fence_key(log, quoted, last_value)})
)""",
        _sessions(quoted(tables.sessions.name), with_items=with_items),
        *(_items(quoted(tables.messages.name)) if with_items else []),
        f"""_numbered AS MATERIALIZED (
  SELECT nextval({in_text(quoted(sequence_name(log)))}) AS position, ordered.* FROM (
    SELECT _input.*, _heads.recorded_at, _heads.version - later AS version FROM _input
    JOIN _heads USING (stream_id, stream_type) CROSS JOIN _fence ORDER BY n OFFSET 0
  ) AS ordered
)""",
        _appended(quoted(log), with_items=with_items),
        *(f"projected_{i} AS (\n{statement}\n)" for i, statement in enumerate(projected)),
        *([_folded(folded, quoted, 3 if with_items else 2)] if folded else []),
        *structure,
    ]
    return (
        "WITH " + ", ".join(parts) + f"\nSELECT stream_id, {_checked(with_items)}, version, "
        "recorded_at, data FROM _appended ORDER BY _appended.position"
    )


def _checked(with_items: bool) -> str:
    """Return the position, or an error like `INCOMPLETE` if a row was not inserted."""
    pairs = [("_appended", "_numbered"), *([("_added", "_items")] if with_items else [])]
    checks = ""
    for done, given in pairs:
        actual, expected = f"(SELECT count(*) FROM {done})", f"(SELECT count(*) FROM {given})"
        failure = f"'rows inserted: ' || {actual} || ' of ' || {expected}"
        checks += f" WHEN {actual} <> {expected} THEN CAST({failure} AS bigint)"
    return f"CASE{checks} ELSE position END AS position"


def _input(*, for_users: bool) -> str:
    return f"""_input AS MATERIALIZED (
  SELECT * FROM json_to_recordset(CAST($1 AS json)) AS r (n int, stream_type varchar,
    stream_id varchar, event_id uuid, type varchar, data text, actor varchar, context text,
    creates boolean, later int{", user_id varchar" if for_users else ""})
)"""


def _heads(heads: str, *, for_users: bool) -> str:
    user_id, owned, still_owned = "NULL", "", ""
    if for_users:
        user_id = "min(user_id)"
        owned = f"""WHERE NOT EXISTS (SELECT FROM _input AS other
    WHERE other.user_id IS NOT NULL AND other.user_id IS DISTINCT FROM (
      SELECT own.user_id FROM {heads} AS own
      WHERE own.stream_id = other.stream_id AND own.stream_type = other.stream_type))"""
        still_owned = "WHERE excluded.user_id IS NULL OR head.user_id = excluded.user_id"
    return f"""_heads AS (
  INSERT INTO {heads} AS head (stream_id, stream_type, version, recorded_at, user_id)
  SELECT stream_id, stream_type, count(*), clock_timestamp(), {user_id}
  FROM _input CROSS JOIN _settings {owned}
  GROUP BY stream_id, stream_type ORDER BY stream_id, stream_type
  ON CONFLICT (stream_id, stream_type) DO UPDATE SET
    version = head.version + excluded.version,
    recorded_at = {_TIME_OF_NEXT} {still_owned}
  RETURNING stream_id, stream_type, version, recorded_at, user_id
)"""


_TIME_OF_NEXT = f"""greatest(CASE WHEN head.recorded_at <= clock_timestamp() + interval
      '{MAX_AHEAD.total_seconds():g} s' THEN head.recorded_at END, clock_timestamp())"""
"""`eventmeta.core.clocks.time_of_next` in SQL; a NULL is not the greatest."""


def _items(messages: str) -> list[str]:
    """Return the parts that give items ids in the order of ``n``, and times in order.

    The time of an item is not before that of any other item of its session.

    It is also not before the time of the session's row, which was set when the row was locked.
    """
    sequence = f"pg_get_serial_sequence({in_text(messages)}, 'id')"
    return [
        f"""_times AS MATERIALIZED (
  SELECT session_id, greatest(updated_at, (SELECT created_at FROM {messages} AS last_item
    WHERE last_item.session_id = _created.session_id ORDER BY created_at DESC LIMIT 1)) AS at
  FROM _created
)""",
        f"""_items AS MATERIALIZED (
  SELECT nextval((SELECT CAST({sequence} AS regclass))) AS id,
    ordered.* FROM (
    SELECT _given.*, _times.at AS created_at FROM _given JOIN _times USING (session_id)
    ORDER BY n OFFSET 0
  ) AS ordered
)""",
        f"""_added AS (
  INSERT INTO {messages} (id, session_id, message_data, created_at)
  SELECT id, session_id, message_data, created_at FROM _items
  RETURNING id
)""",
        # This is one object, because for a join the planner expects so few rows that it would try
        # all pairs.
        """_item_ids AS MATERIALIZED (
  SELECT jsonb_object_agg(event, ids) AS by_event FROM (
    SELECT event, string_agg(CAST(id AS text), ',' ORDER BY id) AS ids FROM _items GROUP BY event
  ) AS own
)""",
    ]


def _appended(log: str, *, with_items: bool) -> str:
    return f"""_appended AS (
  INSERT INTO {log} (position, stream_type, stream_id, version, event_id, type, data, actor,
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


def _sessions(sessions: str, *, with_items: bool) -> str:
    now, given, touch = "timezone('UTC', clock_timestamp())", "", "DO NOTHING"
    if with_items:
        given = """_given AS MATERIALIZED (
  SELECT * FROM json_to_recordset(CAST($2 AS json))
    AS r (n int, event int, session_id varchar, message_data text)
), """
        touch = f"""DO UPDATE SET updated_at = {now}, user_id = excluded.user_id
  WHERE existing.session_id IN (SELECT session_id FROM _given)
  RETURNING existing.session_id, existing.updated_at"""
    return f"""{given}_created AS (
  INSERT INTO {sessions} AS existing (session_id, user_id, created_at, updated_at)
  SELECT stream_id, nullif(_heads.user_id, '{NOBODY}'), {now}, {now} FROM _heads
  WHERE stream_id IN (SELECT stream_id FROM _input WHERE creates)
  ORDER BY stream_id ON CONFLICT (session_id) {touch}
)"""


def _folded(projection: Projection, quoted: Quoted, first: int) -> str:
    columns = list(projection.table.columns)
    given = [f'"{each.name}"' for each in columns if not isinstance(each.type, UtcDateTime)]
    texts = (f"json_array_elements_text(CAST(${n} AS json))" for n, _ in enumerate(given, first))
    keys = [f'"{column.name}"' for column in projection.table.primary_key]
    update = (f'"{name}" = excluded."{name}"' for name in projection.overwritten)
    times = ("_heads.recorded_at" for _ in columns[len(given) :])
    return f"""_folded AS (
  INSERT INTO {quoted(projection.table.name)}
    ({", ".join(f'"{each.name}"' for each in columns)})
  SELECT {", ".join(given)}, {", ".join(times)}
  FROM ROWS FROM ({", ".join(texts)}) AS given ({", ".join(given)})
  JOIN _heads ON _heads.stream_id = given.{keys[0]}
    AND _heads.stream_type = '{projection.stream_type}'
  ORDER BY {", ".join(keys)}
  ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {", ".join(update)}
)"""
