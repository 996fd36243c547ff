"""Steps on Celery: what happens where a worker is missing or was killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from etl_dagster.integrations.dagster.celery_steps import (
    CeleryWorkersAbsent,
    Task,
    Tasks,
    require_workers,
)


@dataclass
class Result:
    """What Celery returns for a task that is submitted."""

    id: str
    result: Any = None
    is_ready: bool = False

    def ready(self) -> bool:
        return self.is_ready

    def failed(self) -> bool:
        return isinstance(self.result, Exception)

    def get(self) -> Any:
        return self.result


class WorkerLostError(Exception):
    """As Celery's, of which only the name is looked at."""


@dataclass
class Celery:
    """A broker, its workers, and a clock that each look moves on."""

    now: float = 0.0
    submitted: list[Result] = field(default_factory=list)
    #: What the workers have; None where none answers.
    known: set[str] | None = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tasks = Tasks(lambda ids: self.known, self.warnings.append, clock=lambda: self.now)

    def submit(self) -> Result:
        self.submitted.append(Result(f"task {len(self.submitted)}"))
        return self.submitted[-1]

    def add(self) -> Task:
        return self.tasks.add("copy[worker_1]", self.submit)

    def look(self, task: Task, times: int, seconds: float = 10.0) -> None:
        for _ in range(times):
            self.now += seconds
            assert not task.ready()


def test_a_step_whose_worker_is_gone_is_submitted_again_and_its_second_result_counts() -> None:
    celery = Celery()
    task, other = celery.add(), celery.add()
    celery.known = {"task 0", "task 1"}
    celery.look(task, 2)
    celery.known = {"task 1"}
    celery.look(task, 3)

    assert [each.id for each in celery.submitted] == ["task 0", "task 1", "task 2"]
    assert celery.warnings == [
        "copy[worker_1] is submitted to Celery again: no worker has it any more"
    ]
    celery.submitted[2].result, celery.submitted[2].is_ready = ["events"], True
    assert (task.ready(), task.get()) == (True, ["events"])
    assert not other.ready()


def test_a_step_that_waits_for_others_of_its_run_is_left_where_it_is() -> None:
    celery = Celery(known={"task 0"})
    celery.add()
    waiting = celery.add()

    celery.look(waiting, 20)

    assert len(celery.submitted) == 2


def test_a_step_that_was_lost_before_it_was_seen_is_submitted_again_once_workers_are_idle() -> None:
    celery = Celery(known={"task 1"})
    lost, other = celery.add(), celery.add()
    celery.look(lost, 5)
    assert len(celery.submitted) == 2
    celery.submitted[1].is_ready, celery.known = True, set()
    assert other.ready()

    celery.look(lost, 3)

    assert len(celery.submitted) == 3


def test_a_step_whose_process_was_killed_is_submitted_again_but_not_without_end() -> None:
    celery = Celery()
    task = celery.add()

    def killed() -> None:
        celery.submitted[-1].result, celery.submitted[-1].is_ready = WorkerLostError(), True

    for _ in range(4):
        killed()
        assert not task.ready()
    killed()

    assert task.ready()
    assert isinstance(task.get(), WorkerLostError)
    assert len(celery.submitted) == 5


def test_a_step_that_failed_is_not_submitted_again() -> None:
    celery = Celery()
    task = celery.add()
    celery.submitted[0].result, celery.submitted[0].is_ready = ValueError(), True

    assert task.ready()
    assert len(celery.submitted) == 1


def test_workers_that_do_not_answer_are_no_loss_but_the_log_says_so() -> None:
    """One with the pool "solo" can't answer while it executes a step."""
    celery = Celery(known={"task 0"})
    task = celery.add()
    celery.look(task, 1)
    celery.known = None

    celery.look(task, 8)

    assert len(celery.submitted) == 1
    assert [each.split(";")[0] for each in celery.warnings] == [
        "no Celery worker has answered for 60 s"
    ]


def test_a_run_without_a_worker_fails_before_its_first_step() -> None:
    times = iter(range(100))

    with pytest.raises(CeleryWorkersAbsent, match="no Celery worker answers") as failure:
        require_workers(list, within_s=5, clock=lambda: float(next(times)))

    assert "dagster-celery worker start" in failure.value.solution


def test_a_worker_that_is_being_started_is_waited_for() -> None:
    answers: list[list[object]] = [[], [], [{"worker": "pong"}]]

    require_workers(lambda: answers.pop(0), within_s=5, clock=lambda: 0.0)

    assert answers == []
