"""What the sensor remembers of an asset's runs, so that it knows which checks are hidden."""

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
