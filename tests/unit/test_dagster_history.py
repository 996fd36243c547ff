"""What Dagster's history shows of an asset's runs while the stream reports the asset, too."""

from __future__ import annotations

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetSelection,
    DagsterInstance,
    Definitions,
    asset,
    define_asset_job,
)

from etl_dagster.integrations.dagster.copies.shared_copies import materialized_by_run
from etl_dagster.integrations.dagster.history import EventHistory

ORDERS = AssetKey("orders")


@asset
def orders() -> None:
    """A copy."""


def test_a_report_of_the_stream_after_a_copy_leaves_the_copys_run_known() -> None:
    """Dagster hides what the run evaluated as soon as the stream's report comes after it."""
    job = define_asset_job("copy", AssetSelection.all())
    copy = Definitions(assets=[orders], jobs=[job]).resolve_job_def("copy")
    history = EventHistory()
    with DagsterInstance.ephemeral() as instance:
        run_id = copy.execute_in_process(instance=instance).run_id
        history.look(instance, [ORDERS])
        instance.report_runless_asset_event(AssetMaterialization(ORDERS))

        last = history.look(instance, [ORDERS])[ORDERS]

    assert (last.run_id, last.has_materialized, last.is_running) == (run_id, True, False)


def test_an_asset_of_which_only_the_stream_reports_has_no_run() -> None:
    history = EventHistory()
    with DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(AssetMaterialization(ORDERS))

        last = history.look(instance, [ORDERS])[ORDERS]

    assert (last.run_id, last.has_materialized) == (None, False)


def test_a_table_that_the_stream_has_reported_since_is_not_materialized_twice_by_a_run() -> None:
    """The steps of a job hand one table over while they still copy another."""
    job = define_asset_job("copy", AssetSelection.all())
    copy = Definitions(assets=[orders], jobs=[job]).resolve_job_def("copy")
    with DagsterInstance.ephemeral() as instance:
        run_id = copy.execute_in_process(instance=instance).run_id
        instance.report_runless_asset_event(AssetMaterialization(ORDERS))

        assert materialized_by_run(instance, run_id) == {ORDERS}
        assert materialized_by_run(instance, "another") == set()
