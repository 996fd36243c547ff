DROP EVENT TRIGGER IF EXISTS etl_dagster_alteration;
DROP EVENT TRIGGER IF EXISTS etl_dagster_rewrite;
DROP EVENT TRIGGER IF EXISTS etl_dagster_drop;
DROP FUNCTION IF EXISTS etl_dagster.report_alterations();
-- The schema stays where something else is in it.
DO $remove$
BEGIN
  DROP SCHEMA IF EXISTS etl_dagster RESTRICT;
EXCEPTION WHEN dependent_objects_still_exist THEN
  NULL;
END
$remove$;
