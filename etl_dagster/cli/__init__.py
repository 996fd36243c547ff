"""The command line: `etl-dagster`."""

from etl_dagster.cli.app import cli, main

__all__ = ["cli", "main"]
