"""Waiting until a pipeline has caught up."""

from __future__ import annotations

from collections.abc import Callable

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import rows, running

#: No batch of a test gets so old.
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
