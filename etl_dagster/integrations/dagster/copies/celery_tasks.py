"""The tasks of a run on Celery, of which some may be lost with their worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming

#: A task that a worker had, and that none has for so many questions in a row, is lost. So is one
#: that waits while no worker has any task of the run; it may also wait for other runs, and then the
#: second one finds nothing to do.
_LOST_AFTER = 3
#: A step is submitted so many times at most.
_MAX_TIMES = 5


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
        """A step's task, submitted."""
        task = Task(self, step_key, submit, self._warn)
        self._tasks.append(task)
        self.count += 1
        return task

    def look(self) -> None:
        """Ask the workers which tasks they have; called often."""
        now = self._clock()
        if now < self._look_at:
            return
        self._tasks = [task for task in self._tasks if not task.result.ready()]
        known = self._known([str(task.result.id) for task in self._tasks]) if self._tasks else set()
        self._look_at = self._clock() + self._timing.celery_ask_every_s
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
        if now - self._warned_at >= self._timing.celery_silent_s:
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
