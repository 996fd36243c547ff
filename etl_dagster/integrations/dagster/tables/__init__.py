"""Published tables in Dagster: which there are, where they are, their names and metadata."""
