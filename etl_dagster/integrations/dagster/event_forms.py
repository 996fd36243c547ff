"""A tick's result without checks, or with observations: as the definitions were built."""

from __future__ import annotations

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    SensorResult,
)

_Event = AssetObservation | AssetMaterialization | AssetCheckEvaluation


def without_checks(result: SensorResult, *, but_of: AssetKey | None = None) -> SensorResult:
    """The result, for a code location whose tables have no checks.

    Dagster refuses a run that asks for a check which the code location doesn't have.

    Args:
        but_of: an asset that has checks all the same.
    """
    requests = [
        request._replace(asset_check_keys=None) if request.asset_check_keys else request
        for request in result.run_requests or ()
    ]
    events: list[_Event] = [
        e
        for e in result.asset_events
        if not isinstance(e, AssetCheckEvaluation) or e.asset_key == but_of
    ]
    return result._replace(run_requests=requests, asset_events=events)


def as_observations(result: SensorResult) -> SensorResult:
    """The result, with observations in place of materializations.

    An observation neither refreshes an asset nor starts what depends on it.
    """
    events: list[_Event] = [
        AssetObservation(
            asset_key=event.asset_key, description=event.description, metadata=event.metadata
        )
        if isinstance(event, AssetMaterialization)
        else event
        for event in result.asset_events
    ]
    return result._replace(asset_events=events)
