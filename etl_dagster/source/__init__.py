"""The only place that talks to the source Postgres: catalog, slots, stream, copy."""
