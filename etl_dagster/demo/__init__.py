"""Embedded Postgres, sample data, workload."""
