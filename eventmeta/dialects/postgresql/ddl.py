"""DDL on PostgreSQL: a sequence, triggers, and no lock that is held for long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ForeignKeyConstraint
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmeta.dialects.ddl import DDL, Part
from eventmeta.dialects.postgresql.fast_path import Quoted, in_text, sequence_name
from eventmeta.dialects.postgresql.items import item_functions
from eventmeta.tables.tables import Tables

_SCHEMA_LOCK = 0x6576_6D74


class PostgreSQLSchema(DDL):
    """The DDL of PostgreSQL."""

    def list_parts(self, relations: Iterable[str]) -> str:
        """Return a query of the catalog; the information schema shows users only what is theirs."""
        names = ", ".join(f"'{name}'" for name in relations)
        return f"""WITH wanted AS MATERIALIZED (
  SELECT relation, to_regclass({self.within_schema}quote_ident(relation)) AS oid
  FROM unnest(ARRAY[{names}]::text[]) AS relation
)
SELECT CASE WHEN relkind IN ('v', 'm') THEN 'view' ELSE 'table' END AS kind, relation, '' AS name
FROM wanted JOIN pg_class ON pg_class.oid = wanted.oid
UNION ALL SELECT 'column', relation, attname::text
FROM wanted JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'index', relation, relname::text
FROM wanted JOIN pg_index ON indrelid = wanted.oid JOIN pg_class ON pg_class.oid = indexrelid
UNION ALL SELECT 'trigger', relation, tgname::text
FROM wanted JOIN pg_trigger ON tgrelid = wanted.oid AND NOT tgisinternal
UNION ALL SELECT 'foreign key', relation, attname::text
FROM wanted JOIN pg_constraint ON conrelid = wanted.oid AND contype = 'f'
JOIN pg_attribute ON attrelid = conrelid AND attnum = ALL (conkey)
UNION ALL SELECT 'function', relation, proname::text
FROM wanted JOIN pg_class ON pg_class.oid = wanted.oid
JOIN pg_proc ON pronamespace = relnamespace AND starts_with(proname::text, relation || '_')"""

    @property
    def within_schema(self) -> str:
        """Return the text before the name of a table in an expression for a regclass."""
        if self.schema is None:
            return ""
        quote = self.engine.dialect.identifier_preparer.quote_identifier
        return f"{in_text(f'{quote(self.schema)}.')} || "

    async def begin_schema_change(self, connection: AsyncConnection) -> None:
        # While DDL waits for a table lock, later queries on that table queue behind it.
        await connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")

    def add_foreign_key(self, key: ForeignKeyConstraint, *, with_column: bool) -> Sequence[str]:
        """Return the DDL without a check, which would block writers while it reads the table."""
        return () if with_column else (f"{self._add_foreign_key(key)} NOT VALID",)

    def guards(self, tables: Tables) -> Mapping[Part, Sequence[str]]:
        """Return DDL that does nothing if all exists: other DDL would wait for every reader."""
        name = tables.events.name
        log, sequence = self.quoted(name), self.quoted(sequence_name(name))
        refuse = f"{self.quoted(f'{name}_refuse')}()"
        last = f"{name}_no_truncate"
        guard = f"""DO $do$ BEGIN
IF NOT EXISTS (
  SELECT FROM pg_trigger WHERE tgname = '{last}' AND tgrelid = {in_text(log)}::regclass
) THEN
  CREATE SEQUENCE {sequence} CACHE 1;
  ALTER TABLE {log} ALTER COLUMN position SET DEFAULT nextval({in_text(sequence)}::regclass);
  CREATE FUNCTION {refuse} RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '{name} is append-only'; END$$;
  CREATE TRIGGER "{name}_no_change" BEFORE UPDATE OR DELETE ON {log}
    FOR EACH ROW EXECUTE FUNCTION {refuse};
  CREATE TRIGGER "{last}" BEFORE TRUNCATE ON {log}
    FOR EACH STATEMENT EXECUTE FUNCTION {refuse};
END IF; END $do$"""
        functions = {
            Part("function", tables.messages.name, function): (statement,)
            for function, statement in item_functions(tables, self.quoted).items()
        }
        return {
            Part("trigger", name, last): (guard,),
            **functions,
            **_order_of_items(tables, self.quoted),
        }

    def create_view(self, name: str, definition: str) -> str:
        view = self.quoted(name)
        return f"""DO $do$ BEGIN
IF to_regclass({in_text(view)}) IS NULL THEN CREATE VIEW {view} AS {definition}; END IF;
END $do$"""


def _order_of_items(tables: Tables, quoted: Quoted) -> Mapping[Part, Sequence[str]]:
    """Return a trigger for items that other writers add at the default time of the column.

    The default is the time at which their transaction began, in the time zone of their connection,
    even if other items were added since then, rounded as the column says. A time that is given, as
    by a restore, is not changed. A partition has the trigger too, and looks at the whole table.
    """
    name = tables.messages.name
    trigger = f"{name}_in_order"
    messages, function = quoted(name), quoted(trigger)
    return {
        Part("trigger", name, trigger): (
            f"""DO $do$ BEGIN
IF NOT EXISTS (
  SELECT FROM pg_trigger WHERE tgname = '{trigger}' AND tgrelid = {in_text(messages)}::regclass
) THEN
  CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    EXECUTE format('SELECT greatest(timezone(''UTC'', clock_timestamp()), max(created_at)) '
      'FROM %s WHERE session_id = $1', coalesce(pg_partition_root(TG_RELID), TG_RELID)::regclass)
      INTO NEW.created_at USING NEW.session_id;
    RETURN NEW; END$$;
  EXECUTE (
    SELECT format('CREATE TRIGGER "{trigger}" BEFORE INSERT ON %s FOR EACH ROW '
      'WHEN (NEW.created_at = LOCALTIMESTAMP::%s) EXECUTE FUNCTION %s', attrelid::regclass,
      format_type(atttypid, atttypmod), {in_text(f"{function}()")})
    FROM pg_attribute WHERE attrelid = {in_text(messages)}::regclass AND attname = 'created_at'
  );
END IF; END $do$""",
        )
    }
