"""How a table passes from its table sync worker to the apply worker, at bad moments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Catchup, SyncWait
from etl_dagster.model.stores import ApplyWorker
from tests.support.database import Database
from tests.support.pipelines import running

MakeConfig = Callable[..., PipelineConfig]


def test_a_target_lies_past_what_earlier_apply_workers_passed_over(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """A worker asked, got no target in time, and the apply worker read on and started anew: what it
    read before is never sent again, so the table's own worker has to apply it."""
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for table items"
    )
    config = make_config(newest_database)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
        [table_id] = store.get_table_replication_states()
        progress = store.get_replication_progress(ApplyWorker())
        assert progress is not None
        asked_at = Lsn(progress.offset - 1)
        store.update_table_replication_states([(table_id, SyncWait(asked_at))])

        with running(config, store=store, copies="elsewhere"):
            while (state := store.get_table_replication_state(table_id)) == SyncWait(asked_at):
                store.wait_for_change(1.0)

        # A target that was not reached in time has been withdrawn, and is asked for again.
        target = state.target_lsn if isinstance(state, Catchup) else state.lsn  # type: ignore[union-attr]
        assert target >= progress
