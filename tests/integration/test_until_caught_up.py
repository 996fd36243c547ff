"""Waiting until a pipeline has caught up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from etl_dagster.cli import cli
from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import rows, running

#: No batch of a test gets this old.
AN_HOUR_MS = 3_600_000


def test_catching_up_does_not_wait_until_the_last_batch_is_old(
    newest_database: Database, make_config: Callable[..., PipelineConfig]
) -> None:
    newest_database.execute(
        "create table t (id int primary key)", "create publication etl_pub for table t"
    )
    config = make_config(newest_database, batch={"max_fill_ms": AN_HOUR_MS})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        newest_database.execute("insert into t values (1)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select id from public.t") == [(1,)]
        newest_database.execute("insert into t values (2)")
        assert pipeline.wait_until_caught_up(60)
    assert rows(config, "select id from public.t order by 1") == [(1,), (2,)]


def test_a_paused_table_is_not_copied_and_not_waited_for_until_it_is_resumed(
    newest_database: Database, make_config: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    newest_database.execute(
        "create table t (id int primary key)", "create publication etl_pub for table t"
    )
    config = make_config(newest_database)
    path = tmp_path / "etl.yaml"
    path.write_text(
        json.dumps(
            {
                "pipeline": config.pipeline,
                "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
                "destination": {"type": "duckdb", "path": str(tmp_path / "test.duckdb")},
            }
        )
    )

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments, "--config", str(path)])
        assert done.exit_code == 0, done.output
        return done.output

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert "Paused 1 table:" in call("pause", "public.t", "--yes")
        call("reset", "public.t", "--yes")
        assert pipeline.wait_until_caught_up(60)
        assert "init, paused" in call("status")
        assert "Resumed 1 table:" in call("resume", "public.t", "--yes")
        assert "public.t  (not paused)" in call("resume", "public.t", "--yes")
        assert pipeline.wait_until_caught_up(60)
        assert "ready" in call("status")
