"""Shows a replicator that is a service of its own; neither starts nor stops it."""

from __future__ import annotations

import time

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.lag import STALE_S, published
from etl_dagster.integrations.dagster.phrases import as_of
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.supervision import Supervision


class ServiceAbsent(EtlError):
    """The service that streams the pipeline does not run, or no longer reports its status."""

    solution = (
        "Start the service, `etl-dagster run`. Its own log says why it ended or no longer reports."
    )


def observe(resource: EtlResource) -> Supervision:
    """What the service has published of the pipeline.

    Raises:
        EtlError: the state store can't be reached.
    """
    found = published(resource)
    status = found.status
    if status is None or not found.is_running:
        last = "" if status is None else f"; the last one reported at {as_of(status.at)}"
        if status is not None and status.error is not None:
            last += f": {status.error}"
        solution = None if status is None else status.solution
        return _absent(f"no process streams the pipeline{last}", solution)
    if time.time() - status.at > STALE_S:
        return _absent(f"the process that streams last reported at {as_of(status.at)}")
    # Another process counts from zero.
    return Supervision(status, status.epoch)


def _absent(reason: str, solution: str | None = None) -> Supervision:
    failure = ServiceAbsent(reason, solution=solution or ServiceAbsent.solution)
    return Supervision(None, 0, reason, failure)
