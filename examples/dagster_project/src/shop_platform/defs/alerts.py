"""Alerts: for each run that failed, and for each check of a run that did not pass."""

import json
import os
import urllib.request

import dagster as dg


def send(text: str) -> None:
    """A message to the webhook that ``ALERT_URL`` names, in the form that Slack takes."""
    url = os.environ.get("ALERT_URL")
    if not url:
        dg.get_dagster_logger().warning("ALERT_URL is not set; not sent: %s", text)
        return
    request = urllib.request.Request(
        url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.RUNNING)
def alert_on_failed_runs(context: dg.RunFailureSensorContext) -> None:
    table = context.dagster_run.tags.get("etl/table", "")
    send(f"{context.dagster_run.job_name} {table} failed: {context.failure_event.message}")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS, default_status=dg.DefaultSensorStatus.RUNNING
)
def alert_on_failed_checks(context: dg.RunStatusSensorContext) -> None:
    """A check that does not pass fails no run: the reconciliation at night ends with success."""
    found = context.instance.get_records_for_run(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    for record in found.records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        check = event.asset_check_evaluation_data
        if not check.passed:
            send(f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description}")
