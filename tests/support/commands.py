"""Commands on the pipeline of a test, called in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from tests.support.database import Database


def write_etl_yaml(database: Database, config: PipelineConfig, folder: Path, **more: Any) -> Path:
    """The configuration of `make_config` as a file: source, DuckDB file, and what is given."""
    sections = {
        "pipeline": config.pipeline,
        "source": {"dsn": database.dsn, "publication": config.source.publication},
        "destination": {"type": "duckdb", "path": str(folder / "test.duckdb")},
    }
    path = folder / "etl.yaml"
    path.write_text(yaml.safe_dump(sections | more), "utf-8")
    return path


def call(command: str, file: Path, *arguments: str) -> str:
    """What the command prints on stdout; it must end with 0."""
    done = CliRunner().invoke(cli, [command, "-c", str(file), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout
