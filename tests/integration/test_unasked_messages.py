"""An unrequested message from the server that carries nothing doesn't end the stream."""

from __future__ import annotations

from collections.abc import Callable

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, running

MakeConfig = Callable[..., PipelineConfig]


def test_large_transactions_that_are_rolled_back_leave_nothing(
    database: Database, make_config: MakeConfig
) -> None:
    """PostgreSQL 18.6 sends a Stream Abort for the first one, though streaming is off."""
    database.execute(
        "create table t (id int primary key, v text)",
        "create publication etl_pub for table t",
        f"alter database {database.name} set logical_decoding_work_mem = '64kB'",
    )
    config = make_config(database)
    large = "insert into t select i, repeat('x', 100) from generate_series({}, {}) i"

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    # Decoded only once it has ended: then the server knows of the rollback beforehand.
    with database.connect() as writer:
        writer.execute("begin")
        writer.execute("insert into t values (-1, 'undone')")
        writer.execute("savepoint a")
        writer.execute("insert into t values (-2, 'undone')")
        writer.execute("release a")
        writer.execute(large.format(1, 5000))
        writer.execute("rollback")
        writer.execute("begin")
        writer.execute("insert into t values (1, 'kept')")
        writer.execute("savepoint b")
        writer.execute(large.format(2, 5000))
        writer.execute("rollback to b")
        writer.execute("insert into t values (2, 'kept, too')")
        writer.execute("commit")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "t")
        assert pipeline.status().tables["public.t"].state == "ready"
