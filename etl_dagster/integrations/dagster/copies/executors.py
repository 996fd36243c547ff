"""An executor for code locations whose runs often copy a single table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from dagster import (
    DagsterEvent,
    Executor,
    ExecutorDefinition,
    InitExecutorContext,
    executor,
    in_process_executor,
    multi_or_in_process_executor,
)


def single_copy_in_process(copies: Collection[str], checks: Collection[str]) -> ExecutorDefinition:
    """Dagster's default executor, except that the run of a single copy stays in one process.

    The default executor starts a process for each step, and each loads the code location first,
    which takes longer than the copy of a small table and its checks.

    Args:
        copies: names of the steps that copy a table.
        checks: names of the steps that check tables.
    """

    @executor(
        name="single_copy_in_process",
        config_schema=multi_or_in_process_executor.config_schema.as_field(),
        requirements=multi_or_in_process_executor.get_requirements,
    )
    def chosen(context: InitExecutorContext) -> Executor:
        in_process = InitExecutorContext(
            job=context.job,
            executor_def=in_process_executor,
            # The defaults of its schema: Dagster resolves them only for the job's own executor.
            executor_config={"retries": {"enabled": {}}},
            instance=context.instance,
        )
        return _Chosen(
            _created(multi_or_in_process_executor, context),
            _created(in_process_executor, in_process),
            frozenset(copies),
            frozenset(checks),
        )

    return chosen


class _Chosen(Executor):
    # `Any`: Dagster doesn't export the types of what it passes on.

    def __init__(
        self,
        default: Executor,
        in_process: Executor,
        copies: Collection[str],
        checks: Collection[str],
    ) -> None:
        self._default = default
        self._in_process = in_process
        self._copies = copies
        self._checks = checks

    @property
    def retries(self) -> Any:
        return self._default.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        names = [step.node_handle.name for step in execution_plan.steps]
        is_ours = all(name in self._copies or name in self._checks for name in names)
        is_single = is_ours and sum(name in self._copies for name in names) <= 1
        chosen = self._in_process if is_single else self._default
        return chosen.execute(plan_context, execution_plan)


def _created(definition: ExecutorDefinition, context: InitExecutorContext) -> Executor:
    assert definition.executor_creation_fn is not None
    return definition.executor_creation_fn(context)
