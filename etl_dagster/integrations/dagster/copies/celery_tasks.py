"""The tasks of a run on Celery; some may be lost with their worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming

#: A task is lost if a worker had it, and then no worker has it when asked this many times in a row.
#: So is a task that waits while no worker has any task of the run. Such a task may only wait for
#: other runs; then the one that is submitted in its place finds nothing to do.
_LOST_AFTER = 3
#: A step is submitted this many times at most.
_MAX_TIMES = 5


class CeleryStepLost(EtlError):
    """A step was lost with its worker each time that it was submitted."""

    def __init__(self, step_key: str, times: int) -> None:
        super().__init__(
            f"{step_key} was submitted to Celery {times} times, and lost with its worker each time",
            solution="Find out from the workers' logs what ends them, such as too little memory. "
            "Then execute the run again from failure: finished chunks are kept.",
        )


class Tasks:
    """The tasks of a run.

    Args:
        known: returns those of the task IDs that some worker has; None if no worker answers.
        warn: writes into the run's log.
    """

    def __init__(
        self,
        known: Callable[[list[str]], set[str] | None],
        warn: Callable[[str], object],
        *,
        timing: DagsterTiming = DAGSTER_TIMING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = known
        self._warn = warn
        self._timing = timing
        self._clock = clock
        self._tasks: list[Task] = []
        #: How many steps were submitted.
        self.count = 0
        self._look_at = clock() + timing.celery_ask_every_s
        self._silent_since: float | None = None
        self._warned_at = 0.0

    def add(self, step_key: str, submit: Callable[[], Any]) -> Task:
        """Submit a step's task, and watch it."""
        task = Task(self, step_key, submit, self._warn)
        self._tasks.append(task)
        self.count += 1
        return task

    def look(self) -> None:
        """Ask the workers which tasks they have; called often."""
        now = self._clock()
        if now < self._look_at:
            return
        # A killed task has a result, too, until it is submitted again; so none is dropped here.
        waiting = [task for task in self._tasks if not task.is_over]
        known = self._known([str(task.result.id) for task in waiting]) if waiting else set()
        self._look_at = self._clock() + self._timing.celery_ask_every_s
        if known is None:
            # A worker that executes a task in its own process (pool "solo") can't answer meanwhile.
            self._none_answered(now)
            return
        self._silent_since = None
        for task in waiting:
            task.looked_for(str(task.result.id) in known, are_idle=not known)

    def _none_answered(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = self._warned_at = now
        if now - self._warned_at >= self._timing.celery_silent_s:
            self._warned_at = now
            silent_s = now - self._silent_since
            self._warn(
                f"no Celery worker has answered for {silent_s:.0f} s; if none runs, start one, and "
                "the steps continue there"
            )


class Task:
    """The newest of a step's tasks, which the executor's loop waits for."""

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
        self._is_given_up = self._is_revoked = False
        #: Celery's own result of the newest task.
        self.result = submit()

    @property
    def is_over(self) -> bool:
        """Whether it has a result, or was lost and isn't submitted again."""
        return self._is_given_up or bool(self.result.ready())

    def ready(self) -> bool:
        """Whether it has ended; a lost one is submitted again."""
        self._tasks.look()
        if self._is_given_up or not self.result.ready():
            return self._is_given_up
        is_killed = self.result.failed() and type(self.result.result).__name__ == "WorkerLostError"
        if is_killed and self._is_revoked:
            self._is_given_up = True
            return True
        return not (is_killed and self._again("its process was killed"))

    def get(self) -> Any:
        """What it returned, or raises what it raised.

        Raises:
            CeleryStepLost: it was submitted as often as allowed, and lost each time.
            TaskRevokedError: it was lost after `revoke`; Dagster's executor takes that for an end.
        """
        if self._is_given_up and self._is_revoked:
            from celery.exceptions import TaskRevokedError

            raise TaskRevokedError(f"{self._step_key} was lost with its worker")
        if self._is_given_up:
            raise CeleryStepLost(self._step_key, _MAX_TIMES)
        return self.result.get()

    def revoke(self) -> None:
        """Keep it from being started, and from being submitted again: the run is terminated."""
        self._is_revoked = True
        self.result.revoke()

    def looked_for(self, is_known: bool, *, are_idle: bool) -> None:
        """Note whether some worker has the task.

        Args:
            are_idle: no worker has any of the run's tasks, so this one doesn't wait for another.
        """
        if is_known:
            self._was_seen, self._missed = True, 0
        elif (self._was_seen or are_idle) and not self.result.ready():
            self._missed += 1
            if self._missed >= _LOST_AFTER and not self._again("no worker has it any more"):
                # Else the run would wait for it without end.
                self._is_given_up = True
                if not self._is_revoked:
                    lost = CeleryStepLost(self._step_key, _MAX_TIMES)
                    self._warn(with_solution(lost.reason, lost.solution))

    def _again(self, why: str) -> bool:
        """Submit it again, unless it is revoked or that was done too often; returns whether so."""
        if self._is_revoked or self._times >= _MAX_TIMES:
            return False
        self._warn(f"{self._step_key} is submitted to Celery again: {why}")
        self._times += 1
        self._was_seen, self._missed = False, 0
        self.result = self._submit()
        return True
