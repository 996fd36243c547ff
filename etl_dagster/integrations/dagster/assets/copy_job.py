"""A job whose steps copy tables together, on whatever executor it has."""

# Dagster reads the annotations of an op's function, so they must not be strings.
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    DagsterExecutionInterruptedError,
    DynamicOut,
    DynamicOutput,
    ExecutorDefinition,
    Failure,
    In,
    JobDefinition,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    RetryPolicy,
    RetryRequested,
    job,
    op,
)

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.dagster.assets.specs import keys_by_table, load_etl_asset_specs
from etl_dagster.integrations.dagster.copies.copy_plan import plan_copies
from etl_dagster.integrations.dagster.copies.presence import watch_of_run
from etl_dagster.integrations.dagster.copies.shared_copies import (
    RunWatch,
    SharedCopies,
    materialize_missing,
)
from etl_dagster.integrations.dagster.copies.table_asset import copy_pool
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.tables.translator import (
    COPIES_TAG,
    PIPELINE_TAG,
    RUN_TABLE_TAG,
    STATE_ID,
)
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore

#: Names of executors that skip dynamic (mapped) steps. Dask's then reports the run as a success.
_SKIPS_MAPPED_STEPS = ("dask",)
_MAX_RETRIES, _FIRST_RETRY_S, _LONGEST_RETRY_S = 3, 10, 60
#: For a step whose process was killed: the executor starts it again, and it copies what is left.
_AFTER_A_KILL = RetryPolicy(max_retries=3, delay=1)


def build_copy_job(
    pipeline: str | Path | EtlResource,
    tables: str | Sequence[str],
    *,
    assets: Iterable[AssetsDefinition | AssetSpec] | None = None,
    workers: int = 2,
    executor_def: ExecutorDefinition | None = None,
    name: str | None = None,
) -> JobDefinition:
    """A job that copies tables with several steps, which may run on several machines.

        from dagster_celery import celery_executor

        copy_orders = build_copy_job(
            "etl.yaml", "public.orders", workers=4, executor_def=celery_executor
        )

    A table is copied in chunks (``copy.chunk_rows``), which the steps claim one at a time in
    the pipeline's state store. If a step's process is killed, the others copy what it leaves. The
    others don't wait for a step that starts late or never. Each step opens up to
    ``copy.max_connections_per_table`` connections to the source. The assets of the tables
    are materialized when they are handed over to the stream, so a replicator has to run, as for
    any copy.

    One step copies a table alone if the table has no key, or if the destination can't be written by
    several processes; the log of the step ``plan`` says why. The steps use the pool of the
    pipeline's copies, so its limit bounds them, too.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        tables: ``schema.table`` of each table that a run copies. Those that are streamed already
            are copied again, from the beginning.
        assets: those of the tables; others are ignored. By default, those that
            `load_etl_asset_specs` creates, which asks the source.
        workers: how many steps copy, at most.
        executor_def: where the steps run: in the run's process, in processes of the same machine,
            on Celery's workers or in Kubernetes; by default the code location's executor. On
            Celery, a run without a worker fails, and the step of a worker that is gone is submitted
            again.
        name: of the job; by default ``PIPELINE_shared_copy``.

    Raises:
        ConfigError: the configuration holds mistakes, a table has no asset, or the executor skips
            dynamic steps, as Dask's does.
    """
    resource, config = locate(pipeline)
    names = [tables] if isinstance(tables, str) else list(dict.fromkeys(tables))
    if assets is None:
        assets = load_etl_asset_specs(resource, tables=names)
    known = keys_by_table(assets, config.pipeline)
    mistakes = [f"tables: {each!r} has no asset among those given" for each in names]
    mistakes = [said for each, said in zip(names, mistakes, strict=True) if each not in known]
    if not names:
        mistakes.append("tables: name at least one")
    if workers < 1:
        mistakes.append("workers: at least 1")
    if executor_def is not None and executor_def.name in _SKIPS_MAPPED_STEPS:
        mistakes.append(
            f"executor_def: {executor_def.name} skips dynamic steps without an error, so nothing "
            "would be copied; use the multiprocess, Celery or Kubernetes executor"
        )
    if mistakes:
        raise ConfigError(mistakes, origin=f"pipeline {config.pipeline}")
    if executor_def is not None and executor_def.name == "celery":
        from etl_dagster.integrations.dagster.copies.celery_steps import watched_celery

        executor_def = watched_celery(executor_def, resource.get_timing)
    keys = {each: known[each] for each in names}
    name = name or f"{config.pipeline}_shared_copy"
    plan, copy, finish = _ops(name, config.pipeline, keys, workers)

    tags = {PIPELINE_TAG: config.pipeline, COPIES_TAG: json.dumps(names)}
    if len(names) == 1:
        tags |= {RUN_TABLE_TAG: names[0], STATE_ID: config.state_id(names[0])}

    @job(
        name=name,
        executor_def=executor_def,
        resource_defs={config.pipeline: resource},
        tags=tags,
        description=f"Copies {', '.join(names)} with up to {workers} steps at a time.",
    )
    def shared_copy() -> None:
        finish(plan().map(copy).collect())

    return shared_copy


def _ops(
    name: str, resource_key: str, keys: Mapping[str, AssetKey], workers: int
) -> tuple[OpDefinition, OpDefinition, OpDefinition]:
    """The three steps. They share what they know through the state store, so they need no disk that
    all of them can read."""
    worker_names = [f"worker_{number}" for number in range(1, workers + 1)]

    @op(
        name=f"{name}_plan",
        out=DynamicOut(Nothing),
        required_resource_keys={resource_key},
        retry_policy=_AFTER_A_KILL,
    )
    def plan(context: OpExecutionContext) -> Iterator[DynamicOutput[None]]:
        with _working(context, resource_key) as step:
            count = plan_copies(
                context,
                step.config,
                step.store,
                step.destination,
                step.watch,
                list(keys),
                workers,
            )
        for worker in worker_names[:count]:
            yield DynamicOutput(None, mapping_key=worker)

    @op(
        name=f"{name}_copy",
        ins={"planned": In(Nothing)},
        out=None,
        required_resource_keys={resource_key},
        pool=copy_pool(resource_key),
        retry_policy=_AFTER_A_KILL,
    )
    def copy(context: OpExecutionContext) -> None:
        with _working(context, resource_key) as step, step.started():
            SharedCopies(
                context,
                step.config,
                step.store,
                step.destination,
                step.watch,
                keys,
                worker=str(context.get_mapping_key()),
                workers=worker_names,
            ).run()

    @op(
        name=f"{name}_finish",
        ins={"copied": In(Nothing)},
        required_resource_keys={resource_key},
        retry_policy=_AFTER_A_KILL,
    )
    def finish(context: OpExecutionContext) -> None:
        with _working(context, resource_key) as step, step.started():
            materialize_missing(
                context, step.config, step.store, step.destination, step.watch, keys
            )

    return plan, copy, finish


@dataclass(frozen=True)
class _Step:
    """What a step of the job works with."""

    config: PipelineConfig
    store: CoordinatingStore
    #: Not started.
    destination: Destination
    watch: RunWatch

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start the destination for this block, and release it afterwards."""
        from etl_dagster.runtime.checking.belonging import start_destination

        try:
            start_destination(self.config, self.store, self.destination)
            yield
        finally:
            self.destination.shutdown()


@contextmanager
def _working(context: OpExecutionContext, resource_key: str) -> Iterator[_Step]:
    """Open what a step works with, and translate how it ends for Dagster.

    Raises:
        RetryRequested: the step failed, but waiting may cure that.
        Failure: it failed otherwise, or the run is terminated: `_AFTER_A_KILL` must not start the
            step again.
    """
    resource: EtlResource = getattr(context.resources, resource_key)
    try:
        config = resource.load_config()
        with resource.get_store() as store:
            replicator = watch_of_run(context.instance, store, config.pipeline, resource.get_timing)
            watch = RunWatch(context, replicator)
            # Celery may deliver a step again after the run is over.
            watch.check_run()
            replicator.require_logged(context.log.info)
            yield _Step(config, store, resource.get_destination(), watch)
    except DagsterExecutionInterruptedError as error:
        raise Failure("The run was terminated.", allow_retries=False) from error
    except EtlError as error:
        if error.retryable and context.retry_number < _MAX_RETRIES:
            delay_s = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S).delay_s(context.retry_number)
            context.log.warning(f"{error.reason}. Trying again in {delay_s:.0f} s.")
            raise RetryRequested(max_retries=_MAX_RETRIES, seconds_to_wait=delay_s) from error
        raise Failure(
            description=with_solution(error.reason, error.solution),
            metadata={"reason": error.reason, "solution": error.solution},
            allow_retries=False,
        ) from error
