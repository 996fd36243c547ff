-- Reports every change of a table's columns in the stream, at its place in the transaction.
--
-- Run as a role that may create event triggers: a superuser, or rds_superuser (Amazon RDS),
-- cloudsqlsuperuser (Cloud SQL), azure_pg_admin (Azure). Roles that alter tables need no right.
-- It never fails a statement: an error in it becomes a warning.

CREATE SCHEMA IF NOT EXISTS etl_dagster;

CREATE OR REPLACE FUNCTION etl_dagster.report_alterations() RETURNS event_trigger
LANGUAGE plpgsql
-- Reads the catalog and writes a message, whatever the rights of the role that alters a table.
SECURITY DEFINER
-- Names and operators are found in pg_catalog alone, whatever the caller's search_path is.
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $report$
DECLARE
  -- One ALTER TABLE without a clause that computes values: what it changes follows from the types.
  is_plain boolean := coalesce(
    current_query() ~* '^\s*alter\s+table\s[^;]*;?\s*$'
    and current_query() !~* '\m(using|default|add|check|generated|constraint|set\s+expression)\M',
    false);
  -- ALTER TYPE ... ADD VALUE, RENAME TO, SET SCHEMA and the like leave all values as they are.
  keeps_values boolean := coalesce(
    current_query() ~* '^\s*alter\s+type\s[^;]*;?\s*$'
    and current_query() !~* '\m(rename\s+value|attribute)\M',
    false);
  table_ids oid[] := '{}';
  -- Of these, tables whose rows print differently since a type was altered.
  changed_ids oid[] := '{}';
  type_ids oid[];
  table_id oid;
  description json;
BEGIN
  IF tg_event = 'table_rewrite' THEN
    FOR table_id IN
      SELECT pg_event_trigger_table_rewrite_oid()
      UNION SELECT relid FROM pg_partition_ancestors(pg_event_trigger_table_rewrite_oid())
    LOOP
      IF EXISTS (SELECT FROM pg_class c WHERE c.oid = table_id AND c.relpersistence <> 't'
                 AND obj_description(c.oid, 'pg_class') IS DISTINCT FROM 'etl_dagster state store')
      THEN
        PERFORM pg_logical_emit_message(true, 'etl_dagster alteration', convert_to(
          json_build_object('format', 1, 'kind', 'rewrite', 'table', table_id,
                            'reason', pg_event_trigger_table_rewrite_reason(),
                            'plain', is_plain)::text, 'UTF8'));
      END IF;
    END LOOP;
    RETURN;
  END IF;

  IF tg_event = 'sql_drop' THEN
    -- DROP TYPE ... CASCADE and the like take columns away.
    SELECT coalesce(array_agg(DISTINCT o.objid), '{}') INTO table_ids
    FROM pg_event_trigger_dropped_objects() o
    WHERE o.classid = 'pg_class'::regclass AND o.objsubid > 0;
  ELSE
    SELECT coalesce(array_agg(DISTINCT c.oid), '{}') INTO table_ids
    FROM pg_event_trigger_ddl_commands() d
    JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
                       OR d.classid = 'pg_namespace'::regclass AND c.relnamespace = d.objid
    WHERE c.relkind IN ('r', 'p');
    -- Altered types, and those built of them.
    WITH RECURSIVE altered (oid) AS (
      SELECT coalesce(c.reltype, d.objid)
      FROM pg_event_trigger_ddl_commands() d
      LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
                              AND c.relkind = 'c'
      WHERE d.classid = 'pg_type'::regclass OR c.oid IS NOT NULL
      UNION
      SELECT t.oid
      FROM altered a
      JOIN pg_type t ON t.typelem = a.oid AND t.typcategory = 'A'
        OR t.typbasetype = a.oid
        OR EXISTS (SELECT FROM pg_range r
                   WHERE r.rngsubtype = a.oid
                   AND (to_jsonb(r) ->> 'rngmultitypid' = t.oid::text OR r.rngtypid = t.oid))
        OR EXISTS (SELECT FROM pg_attribute f
                   WHERE f.attrelid = t.typrelid AND f.atttypid = a.oid
                   AND f.attnum > 0 AND NOT f.attisdropped)
    )
    SELECT array_agg(a.oid) INTO type_ids FROM altered a;
    IF type_ids IS NOT NULL THEN
      SELECT coalesce(array_agg(DISTINCT c.oid), '{}') INTO changed_ids
      FROM pg_class c
      WHERE c.relkind IN ('r', 'p') AND NOT keeps_values
      AND EXISTS (SELECT FROM pg_attribute f
                  WHERE f.attrelid = c.oid AND f.atttypid = ANY (type_ids)
                  AND f.attnum > 0 AND NOT f.attisdropped);
      -- Tables OF a composite type have its columns.
      SELECT coalesce(array_agg(DISTINCT c.oid), '{}') || table_ids INTO table_ids
      FROM pg_class c WHERE c.reloftype = ANY (type_ids);
      table_ids := table_ids || changed_ids;
    END IF;
  END IF;

  FOR table_id, description IN
    WITH RECURSIVE concerned (oid) AS (
      SELECT DISTINCT unnest(table_ids)
      UNION
      SELECT i.inhrelid FROM concerned p JOIN pg_inherits i ON i.inhparent = p.oid
    )
    SELECT c.oid, json_build_object(
      'format', 1, 'kind', 'columns', 'command', tg_tag, 'table', c.oid,
      'schema', n.nspname, 'name', c.relname, 'persistence', c.relpersistence,
      'identity', c.relreplident, 'values', c.oid = ANY (changed_ids),
      -- Column lists, by publication.
      'lists', (SELECT json_object_agg(p.pubname, r.prattrs::int2[])
                FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                WHERE r.prrelid = c.oid AND r.prattrs IS NOT NULL),
      -- Publications that send stored generated columns (from version 18 on).
      'generated', (SELECT json_agg(p.pubname) FROM pg_publication p
                    WHERE to_jsonb(p) ->> 'pubgencols' = 's'),
      'columns', (
        SELECT json_agg(json_build_object(
          'attnum', a.attnum, 'name', a.attname, 'type', a.atttypid,
          'modifier', CASE WHEN a.atttypmod = -1 THEN coalesce(b.typmod, -1) ELSE a.atttypmod END,
          'text', format_type(a.atttypid, a.atttypmod), 'base', coalesce(b.oid, a.atttypid),
          'nullable', NOT a.attnotnull, 'generated', a.attgenerated,
          'key', array_position(k.attnums, a.attnum),
          'identity', CASE c.relreplident
            WHEN 'f' THEN true WHEN 'n' THEN false
            WHEN 'd' THEN coalesce(a.attnum = ANY (k.attnums), false)
            ELSE coalesce(a.attnum = ANY (i.attnums), false) END,
          'missing', m.value, 'is_missing_clear', coalesce(m.is_clear, true)) ORDER BY a.attnum)
        FROM pg_attribute a
        LEFT JOIN LATERAL (
          WITH RECURSIVE base (oid, kind, parent, typmod) AS (
            SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod FROM pg_type t
            WHERE t.oid = a.atttypid
            UNION ALL
            SELECT t.oid, t.typtype, t.typbasetype,
                   CASE WHEN base.typmod = -1 THEN t.typtypmod ELSE base.typmod END
            FROM base JOIN pg_type t ON t.oid = base.parent WHERE base.kind = 'd'
          )
          SELECT base.oid, base.typmod FROM base WHERE base.kind <> 'd'
        ) b ON true
        -- The value of a column in rows that were there when it was added; partitions have their own.
        LEFT JOIN LATERAL (
          SELECT min((h.attmissingval::text::text[])[1]) AS value,
                 count(DISTINCT h.attmissingval::text)
                   + bool_or(NOT h.atthasmissing)::int <= 1 AS is_clear
          FROM pg_attribute h
          WHERE h.attname = a.attname AND NOT h.attisdropped AND h.attrelid IN (
            SELECT c.oid WHERE c.relkind <> 'p'
            UNION ALL
            -- Unlike pg_partition_tree(), this waits for no lock on any of them.
            (WITH RECURSIVE parts (oid) AS (
               SELECT c.oid WHERE c.relkind = 'p'
               UNION ALL
               SELECT p.inhrelid FROM parts t JOIN pg_inherits p ON p.inhparent = t.oid
             )
             SELECT l.oid FROM parts t JOIN pg_class l ON l.oid = t.oid WHERE l.relkind <> 'p'))
        ) m ON true
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      ))
    FROM concerned
    JOIN pg_class c ON c.oid = concerned.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
      SELECT (x.indkey::int2[])[0:x.indnkeyatts - 1] AS attnums FROM pg_index x
      WHERE x.indrelid = c.oid AND x.indisprimary AND x.indimmediate) k ON true
    LEFT JOIN LATERAL (
      SELECT (x.indkey::int2[])[0:x.indnkeyatts - 1] AS attnums FROM pg_index x
      WHERE x.indrelid = c.oid AND x.indisreplident AND x.indimmediate) i ON true
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    AND obj_description(c.oid, 'pg_class') IS DISTINCT FROM 'etl_dagster state store'
    ORDER BY c.oid
  LOOP
    PERFORM pg_logical_emit_message(
      true, 'etl_dagster alteration', convert_to(description::text, 'UTF8'));
  END LOOP;
  -- Postgres counts a message where it ends, a row where it begins. The row right after a message
  -- would have the same LSN, and come before it: the EXCEPTION clause makes this a subtransaction,
  -- which is merged with the rest by LSN. So something of no meaning is put between them.
  IF FOUND THEN
    PERFORM pg_logical_emit_message(true, 'etl_dagster', '');
  END IF;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'etl_dagster: this change of columns was not reported (SQLSTATE %)', sqlstate
    USING HINT = 'The statement itself is not affected. The pipeline compares the catalog instead.';
  BEGIN
    IF tg_event = 'ddl_command_end' THEN
      PERFORM pg_logical_emit_message(true, 'etl_dagster alteration', convert_to(
        json_build_object('format', 1, 'kind', 'unknown', 'tables',
          (SELECT json_agg(DISTINCT objid::text) FROM pg_event_trigger_ddl_commands()))::text,
        'UTF8'));
    END IF;
  EXCEPTION WHEN OTHERS THEN
    NULL;
  END;
END
$report$;

COMMENT ON FUNCTION etl_dagster.report_alterations() IS
  'etl_dagster: reports changes of columns to the replication stream';

DROP EVENT TRIGGER IF EXISTS etl_dagster_alteration;
CREATE EVENT TRIGGER etl_dagster_alteration ON ddl_command_end
  WHEN TAG IN ('ALTER TABLE', 'ALTER TYPE', 'ALTER SCHEMA', 'ALTER INDEX', 'ALTER VIEW',
               'ALTER FOREIGN TABLE')
  EXECUTE FUNCTION etl_dagster.report_alterations();
DROP EVENT TRIGGER IF EXISTS etl_dagster_rewrite;
CREATE EVENT TRIGGER etl_dagster_rewrite ON table_rewrite
  EXECUTE FUNCTION etl_dagster.report_alterations();
DROP EVENT TRIGGER IF EXISTS etl_dagster_drop;
CREATE EVENT TRIGGER etl_dagster_drop ON sql_drop
  WHEN TAG IN ('DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION', 'DROP SCHEMA', 'DROP EXTENSION',
               'DROP OWNED', 'DROP COLLATION', 'DROP ROUTINE')
  EXECUTE FUNCTION etl_dagster.report_alterations();
-- Also for sessions with session_replication_role = replica.
ALTER EVENT TRIGGER etl_dagster_alteration ENABLE ALWAYS;
ALTER EVENT TRIGGER etl_dagster_rewrite ENABLE ALWAYS;
ALTER EVENT TRIGGER etl_dagster_drop ENABLE ALWAYS;
-- Set last: says that the installation of this version is complete.
COMMENT ON EVENT TRIGGER etl_dagster_alteration IS 'etl_dagster 1';
