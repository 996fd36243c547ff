"""Steps on Celery whose workers may be missing, or be killed.

dagster-celery has no hook for either, so its executor is given another class of tasks: Celery asks
the class (``task_cls``, a documented argument of `Celery`) to submit a task, and the executor then
waits for the object that this returns. Celery's remote control says which tasks the workers have.
The events of steps are not enough for that: a worker that is killed writes none, and a step that
waits in a queue has not written any yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dagster import DagsterEvent, Executor, ExecutorDefinition, InitExecutorContext, executor

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.copies.celery_tasks import Tasks
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.timing import DagsterTiming


class CeleryWorkersAbsent(EtlError):
    """No Celery worker listens at the broker."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"no Celery worker answers at the broker of this run (waited {waited_s:.0f} s)",
            solution="Start one with `dagster-celery worker start -A dagster_celery.app -y FILE`, "
            "FILE with the broker and the backend of the run, and execute the run again. If the "
            "run's log says that the broker can't be reached, check its URL first.",
        )


def watched_celery(
    definition: ExecutorDefinition, timing: Callable[[], DagsterTiming]
) -> ExecutorDefinition:
    """The same executor with its workers watched, for steps that may be executed twice.

    Dagster's own executor waits forever if no worker runs, or if one was killed: it never learns
    that a task is gone. This one fails the run before the first step if no worker answers, and
    submits the step of a lost task again.

    Args:
        timing: how long to wait for workers; called by each run.
    """

    @executor(
        name=definition.name,
        config_schema=definition.config_schema.as_field(),
        requirements=definition.get_requirements,
    )
    def watched(context: InitExecutorContext) -> Executor:
        assert definition.executor_creation_fn is not None
        mapped = definition.apply_config_mapping({"config": context.executor_config})
        inner = InitExecutorContext(
            job=context.job,
            executor_def=definition,
            executor_config=(mapped.value or {}).get("config", {}),
            instance=context.instance,
        )
        return _Watched(definition.executor_creation_fn(inner), timing())

    return watched


class _Watched(Executor):
    """Celery's executor, with its workers watched."""

    # `Any`: the types of what it passes on are exported by neither package.

    def __init__(self, celery: Any, timing: DagsterTiming) -> None:
        self._celery = celery
        self._timing = timing
        self._task_class: type | None = None

    @property
    def retries(self) -> Any:
        return self._celery.retries

    def app_args(self) -> Any:
        """Arguments of the Celery app that submits the steps; read by Dagster's executor loop."""
        return self._celery.app_args() | {"task_cls": self._task_class}

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        from celery import Celery

        workers = Workers(
            Celery(set_as_current=False, **self._celery.app_args()),
            self._timing.celery_answer_s,
            plan_context.log.warning,
        )
        try:
            require_workers(workers.ping, self._timing.celery_workers_within_s)
        except CeleryWorkersAbsent as error:
            plan_context.log.error(with_solution(error.reason, error.solution))
            raise
        tasks = Tasks(workers.known_tasks, plan_context.log.warning, timing=self._timing)
        self._task_class = watched_task(tasks)
        is_warned = False
        for event in self._celery.execute(plan_context, execution_plan):
            if event.is_step_success and not tasks.count and not is_warned:
                is_warned = True
                plan_context.log.warning(
                    "this version of dagster-celery can't be watched: if a worker is killed, "
                    "terminate the run and execute it again"
                )
            yield event


class Workers:
    """The workers that listen at the broker of a Celery app.

    Args:
        answer_s: how long they may take to answer.
        warn: writes into the run's log.
    """

    def __init__(self, app: Any, answer_s: float, warn: Callable[[str], object]) -> None:
        self._app = app
        self._answer_s = answer_s
        self._warn = warn
        self._is_reached = True

    def ping(self) -> Sequence[object] | None:
        """The answers that came in time; None if the broker can't be reached."""
        answers: Sequence[object] | None = self._ask(
            lambda connection: self._app.control.ping(timeout=self._answer_s, connection=connection)
        )
        return answers

    def known_tasks(self, ids: list[str]) -> set[str] | None:
        """Those of the tasks that some worker has; None if no worker answers."""
        answers = self._ask(
            lambda connection: self._app.control.inspect(
                timeout=self._answer_s, connection=connection
            ).query_task(ids)
        )
        return None if not answers else {task for found in answers.values() for task in found}

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """The answers; None if the broker can't be reached, which the next call tries again."""
        from kombu.exceptions import OperationalError

        # A new connection each time: the broker may close one that is kept open.
        with self._app.connection_for_write() as connection:
            try:
                answers = question(connection)
            except (OperationalError, *connection.connection_errors) as error:
                if self._is_reached:
                    # Celery hides the password.
                    where, why = connection.as_uri(), type(error).__name__
                    self._warn(f"Celery's broker at {where} can't be reached: {why}")
                self._is_reached = False
                return None
        self._is_reached = True
        return answers


def watched_task(tasks: Tasks) -> type:
    """A class of Celery tasks which adds each task that is submitted to `tasks`."""
    from celery import Task

    class Watched(Task):  # type: ignore[misc]  # without types
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            submit = super().apply_async
            return tasks.add(_step_keys(kwargs), lambda: submit(args, kwargs, **options))

    return Watched


def _step_keys(arguments: Any) -> str:
    """The steps that a task executes, for the log."""
    match arguments:
        case {"execute_step_args_packed": {"step_keys_to_execute": [*keys]}} if keys:
            return ", ".join(map(str, keys))
    return "a step"


def require_workers(
    ping: Callable[[], Sequence[object] | None],
    within_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait for a worker.

    Args:
        ping: waits for a moment, and returns the answers of workers.

    Raises:
        CeleryWorkersAbsent: no worker answers in time.
    """
    began = clock()
    while not ping():
        waited_s = clock() - began
        if waited_s >= within_s:
            raise CeleryWorkersAbsent(waited_s)
