"""Postgres change data capture for people who run Dagster."""

__version__ = "0.1.0"
