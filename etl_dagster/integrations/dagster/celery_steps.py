"""Steps on Celery whose workers may be missing, or be killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dagster import DagsterEvent, Executor, ExecutorDefinition, InitExecutorContext, executor

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.phrases import with_solution

#: Workers that are just being started, or replaced, are there within this time.
_WORKERS_WITHIN_S = 30.0
#: How long workers may take to answer a question that is put to all of them.
_ANSWER_S = 1.0
#: How often they are asked which tasks they have.
_ASK_EVERY_S = 3.0
#: A task that a worker had, and that none has for so many questions in a row, is lost. So is one
#: that waits while no worker has any task of the run; it may also wait for other runs, and then the
#: second one finds nothing to do.
_LOST_AFTER = 3
#: A step is submitted so many times at most.
_MAX_TIMES = 5
#: While no worker answers, the run's log says so this often.
_WARN_EVERY_S = 60.0


class CeleryWorkersAbsent(EtlError):
    """No Celery worker listens at the broker."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"no Celery worker answers at the broker of this run (waited {waited_s:.0f} s)",
            solution="Start one with `dagster-celery worker start -A dagster_celery.app -y FILE`, "
            "FILE with the broker and the backend of the run, and execute the run again.",
        )


def watched_celery(definition: ExecutorDefinition) -> ExecutorDefinition:
    """The same executor, for steps that may be executed twice.

    Dagster's own waits for ever where no worker runs, and where one was killed: nothing tells it
    that a task is gone. This one fails the run before the first step if no worker answers, and
    submits the step of a lost task again.
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
        return _Watched(definition.executor_creation_fn(inner))

    return watched


class _Watched(Executor):
    """Celery's executor, with an eye on its workers."""

    # What it passes on has types that neither package exports.

    def __init__(self, celery: Any) -> None:
        self._celery = celery

    @property
    def retries(self) -> Any:
        return self._celery.retries

    def app_args(self) -> Any:
        """Asked for by the loop of Dagster's executor."""
        return self._celery.app_args()

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        from dagster_celery import core_execution_loop
        from dagster_celery import executor as celery_executor
        from dagster_celery.make_app import make_app

        app = make_app(self.app_args())
        try:
            require_workers(lambda: app.control.ping(timeout=_ANSWER_S))
        except CeleryWorkersAbsent as error:
            plan_context.log.error(with_solution(error.reason, error.solution))
            raise
        submit_task = getattr(celery_executor, "_submit_task", None)
        if submit_task is None:
            plan_context.log.warning(
                "this version of dagster-celery can't be watched: if a worker is killed, terminate "
                "the run and execute it again"
            )
            yield from self._celery.execute(plan_context, execution_plan)
            return
        tasks = Tasks(
            lambda ids: _known_tasks(app.control.inspect(timeout=_ANSWER_S).query_task(ids)),
            plan_context.log.warning,
        )

        def submit(app: Any, context: Any, step: Any, *how: Any) -> Task:
            return tasks.add(step.key, lambda: submit_task(app, context, step, *how))

        yield from core_execution_loop.core_celery_execution_loop(
            plan_context, execution_plan, step_execution_fn=submit
        )


def require_workers(
    ping: Callable[[], Sequence[object]],
    *,
    within_s: float = _WORKERS_WITHIN_S,
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


def _known_tasks(answers: Any) -> set[str] | None:
    return None if not answers else {task for found in answers.values() for task in found}


class Tasks:
    """The tasks of a run that have not ended.

    Args:
        known: of task IDs, those that some worker has; None where no worker answers.
        warn: writes into the run's log.
    """

    def __init__(
        self,
        known: Callable[[list[str]], set[str] | None],
        warn: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = known
        self._warn = warn
        self._clock = clock
        self._tasks: list[Task] = []
        self._look_at = clock() + _ASK_EVERY_S
        self._silent_since: float | None = None
        self._warned_at = 0.0

    def add(self, step_key: str, submit: Callable[[], Any]) -> Task:
        """A step's task, submitted."""
        task = Task(self, step_key, submit, self._warn)
        self._tasks.append(task)
        return task

    def look(self) -> None:
        """Ask the workers which tasks they have; called often."""
        now = self._clock()
        if now < self._look_at:
            return
        self._tasks = [task for task in self._tasks if not task.result.ready()]
        known = self._known([str(task.result.id) for task in self._tasks]) if self._tasks else set()
        self._look_at = self._clock() + _ASK_EVERY_S
        if known is None:
            # Those that execute a task in their own process (pool "solo") can't answer meanwhile.
            self._none_answered(now)
            return
        self._silent_since = None
        for task in self._tasks:
            task.looked_for(str(task.result.id) in known, are_idle=not known)

    def _none_answered(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = self._warned_at = now
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            silent_s = now - self._silent_since
            self._warn(
                f"no Celery worker has answered for {silent_s:.0f} s; if none runs, start one: the "
                "steps continue there"
            )


class Task:
    """What the executor's loop waits for: the newest of a step's tasks."""

    def __init__(
        self,
        tasks: Tasks,
        step_key: str,
        submit: Callable[[], Any],
        warn: Callable[[str], object],
    ) -> None:
        self._tasks = tasks
        self._step_key = step_key
        self._submit = submit
        self._warn = warn
        self._times = 1
        self._was_seen = False
        self._missed = 0
        #: As Celery has it.
        self.result = submit()

    def ready(self) -> bool:
        """Whether it has ended; a lost one is submitted again."""
        self._tasks.look()
        if not self.result.ready():
            return False
        is_killed = self.result.failed() and type(self.result.result).__name__ == "WorkerLostError"
        return not (is_killed and self._again("its process was killed"))

    def get(self) -> Any:
        """What it returned, or raises what it raised."""
        return self.result.get()

    def revoke(self) -> None:
        """Keep it from being begun."""
        self.result.revoke()

    def looked_for(self, is_known: bool, *, are_idle: bool) -> None:
        """Some worker has the task, or none.

        Args:
            are_idle: no worker has any of the run's tasks, so they don't wait for each other.
        """
        if is_known:
            self._was_seen, self._missed = True, 0
        elif (self._was_seen or are_idle) and not self.result.ready():
            self._missed += 1
            if self._missed >= _LOST_AFTER:
                self._again("no worker has it any more")

    def _again(self, why: str) -> bool:
        """Submit it again; whether it was, for not without end."""
        if self._times >= _MAX_TIMES:
            return False
        self._warn(f"{self._step_key} is submitted to Celery again: {why}")
        self._times += 1
        self._was_seen, self._missed = False, 0
        self.result = self._submit()
        return True
