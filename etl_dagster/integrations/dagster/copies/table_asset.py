"""One asset for each published table; materializing it copies the table."""

# Dagster reads the annotations of an asset's function, so they must not be strings.
from collections.abc import Iterable, Iterator
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Failure,
    MaterializeResult,
    RetryRequested,
    multi_asset,
)

from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.integrations.dagster.names import step_name
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.pipeline_parts import PipelineParts
from etl_dagster.integrations.dagster.tables.translator import TABLE_TAG

_MAX_RETRIES, _FIRST_RETRY_S, _LONGEST_RETRY_S = 3, 10, 60


def copy_pool(pipeline: str) -> str:
    """The pool that limits how many copies of a pipeline run at a time."""
    return f"etl_copy_{pipeline}"


def build_table_asset(spec: AssetSpec, table_name: str, pipeline: str) -> AssetsDefinition:
    """The asset of one table; it requires the pipeline's resource, under the pipeline's name."""

    @multi_asset(
        specs=[spec],
        name=step_name("copy", spec.key.path),
        required_resource_keys={pipeline},
        pool=copy_pool(pipeline),
    )
    def copy_table(context: AssetExecutionContext) -> MaterializeResult:  # type: ignore[type-arg]
        resource = getattr(context.resources, pipeline)
        return copy_one_table(context, resource, table_name, spec.key)

    return copy_table


def key_of_table(context: AssetExecutionContext, table_name: str) -> AssetKey:
    """The key of the table's asset in the step.

    Raises:
        InvalidState: the step has no asset for the table.
    """
    specs: Iterable[AssetSpec] = context.assets_def.specs
    for spec in specs:
        if spec.metadata.get(TABLE_TAG) == table_name:
            return spec.key
    raise InvalidState(
        f"this step has no asset of the table {table_name!r}",
        solution="Write it as schema.table, and make the assets with etl_assets, or from the "
        "specifications of load_etl_asset_specs.",
    )


def copy_selected_tables(
    context: AssetExecutionContext, resource: PipelineParts
) -> Iterator[MaterializeResult[Any]]:
    """Copy each selected table of the step; a failure of one doesn't stop the others.

    Without a replicator, the remaining tables are left out: each of them would wait for one.

    Raises:
        RetryRequested, Failure: as `copy_one_table`, of the first that failed, at the end.
    """
    from etl_dagster.integrations.dagster.copies.presence import ReplicatorAbsent

    failures: list[RetryRequested | Failure] = []
    for spec in context.assets_def.specs:
        table_name = spec.metadata.get(TABLE_TAG)
        if table_name is None or spec.key not in context.selected_asset_keys:
            continue
        try:
            yield copy_one_table(context, resource, str(table_name), spec.key)
        except (RetryRequested, Failure) as failure:
            context.log.error(f"{table_name}: {failure.__cause__ or failure}")
            failures.append(failure)
            if isinstance(failure.__cause__, ReplicatorAbsent):
                break
    if failures:
        raise next((each for each in failures if isinstance(each, RetryRequested)), failures[0])


def copy_one_table(
    context: AssetExecutionContext,
    resource: PipelineParts,
    table_name: str,
    key: AssetKey,
) -> MaterializeResult[Any]:
    """Copy a table up to its hand-over, inside a step.

    A copy already under way is resumed. A table that is streamed already is copied again from the
    beginning if a person started the run. If the sensor requested it, another worker has made the
    copy meanwhile.

    Without a replicator, nothing would take over the table. So a run that a person started first
    waits for one, and every run ends soon after the replicator is gone.

    Raises:
        RetryRequested: waiting may cure the failure. A `RetryPolicy` on the asset would do the
            same, but Dagster also applies it to a run that is terminated by hand, which then
            continues.
        Failure: the copy failed; the description says what to do about it.
    """
    from etl_dagster.backoff import Backoff
    from etl_dagster.integrations.dagster.copies.presence import watch_of_run
    from etl_dagster.integrations.dagster.copies.step_copy import StepCopy, is_asked_for_by_person
    from etl_dagster.integrations.dagster.outcome import Outcome
    from etl_dagster.runtime.checking.belonging import start_destination

    try:
        config = resource.load_config()
        with resource.get_store() as store:
            watch = watch_of_run(context.instance, store, config.pipeline, resource.get_timing)
            if is_asked_for_by_person(context):
                watch.require_logged(context.log.info)
            destination = resource.get_destination()
            timing = resource.get_timing()
            copy = StepCopy(context, config, store, destination, watch, table_name, timing=timing)
            try:
                start_destination(config, store, destination)
                return copy.materialize(key)
            finally:
                if copy.is_abandoned:
                    # The thread that was left may use it until a server answers.
                    Outcome(destination.shutdown).wait(timing.given_up_s)
                else:
                    destination.shutdown()
    except EtlError as error:
        if error.retryable and context.retry_number < _MAX_RETRIES:
            delay_s = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S).delay_s(context.retry_number)
            context.log.warning(f"{error.reason}. Trying again in {delay_s:.0f} s.")
            raise RetryRequested(max_retries=_MAX_RETRIES, seconds_to_wait=delay_s) from error
        raise Failure(
            description=with_solution(error.reason, error.solution),
            metadata={"reason": error.reason, "solution": error.solution, "table": table_name},
            allow_retries=False,
        ) from error
