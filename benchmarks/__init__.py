"""How fast etl_dagster is, as ratios of Postgres' own tools on the same machine in the same run."""
