"""Steps on Celery whose workers may be missing, or be killed.

dagster-celery has no hook for either, so its executor is given another class of tasks: Celery asks
the class (``task_cls``, a documented argument of `Celery`) to submit a task, and the executor then
waits for what it returns. Which tasks the workers have is asked by Celery's remote control. Steps'
events would say too little: a worker that is killed writes none, and one whose step waits in a
queue has not written any yet.
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
    """The same executor, for steps that may be executed twice.

    Dagster's own waits for ever where no worker runs, and where one was killed: nothing tells it
    that a task is gone. This one fails the run before the first step if no worker answers, and
    submits the step of a lost task again.

    Args:
        timing: how long to wait for workers, asked for by each run.
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
    """Celery's executor, with an eye on its workers."""

    # What it passes on has types that neither package exports.

    def __init__(self, celery: Any, timing: DagsterTiming) -> None:
        self._celery = celery
        self._timing = timing
        self._task_class: type | None = None

    @property
    def retries(self) -> Any:
        return self._celery.retries

    def app_args(self) -> Any:
        """Of the Celery app that submits the steps; asked for by the loop of Dagster's executor."""
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
    """Those that listen at the broker of an app of Celery's.

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
        """The answers that came in time; None where the broker isn't reached."""
        answers: Sequence[object] | None = self._ask(
            lambda connection: self._app.control.ping(timeout=self._answer_s, connection=connection)
        )
        return answers

    def known_tasks(self, ids: list[str]) -> set[str] | None:
        """Of the tasks, those that some worker has; None where no worker answers."""
        answers = self._ask(
            lambda connection: self._app.control.inspect(
                timeout=self._answer_s, connection=connection
            ).query_task(ids)
        )
        return None if not answers else {task for found in answers.values() for task in found}

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """None where the broker isn't reached: it may be back for the next question."""
        from kombu.exceptions import OperationalError

        # A connection that is kept may have been closed by the broker meanwhile.
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
    """A class of Celery's tasks, each of which is one of `tasks` once it is submitted."""
    from celery import Task

    class Watched(Task):  # type: ignore[misc]  # without types
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            submit = super().apply_async
            return tasks.add(_step_keys(kwargs), lambda: submit(args, kwargs, **options))

    return Watched


def _step_keys(arguments: Any) -> str:
    """Of a task, for the log."""
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
        ping: the answers of workers, after waiting for them for a moment.

    Raises:
        CeleryWorkersAbsent: none answers in time.
    """
    began = clock()
    while not ping():
        waited_s = clock() - began
        if waited_s >= within_s:
            raise CeleryWorkersAbsent(waited_s)
