"""Steps on Celery: what happens where a worker is missing or was killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from etl_dagster.integrations.dagster.copies.celery_steps import (
    CeleryWorkersAbsent,
    Workers,
    require_workers,
    watched_task,
)
from etl_dagster.integrations.dagster.copies.celery_tasks import CeleryStepLost, Task, Tasks
from tests.support.known_tables import NOWHERE


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

    def revoke(self) -> None:
        """A task that is lost or killed never learns of it."""


class WorkerLostError(Exception):
    """Like Celery's; only its name is looked at."""


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


def test_a_step_that_was_killed_once_is_still_watched_after_that() -> None:
    """Its container may end a moment after its process, as where memory runs out."""
    celery = Celery()
    task, other = celery.add(), celery.add()
    celery.submitted[0].result, celery.submitted[0].is_ready = WorkerLostError(), True
    celery.look(other, 1)
    assert not task.ready()
    celery.known = {"task 1", "task 2"}
    celery.look(task, 1)
    celery.known = {"task 1"}

    celery.look(task, 3)

    assert [each.id for each in celery.submitted[3:]] == ["task 3"]


def test_a_step_that_is_lost_each_time_fails_the_run() -> None:
    """Else the run would wait for it without end, and without a word."""
    celery = Celery()
    task = celery.add()
    celery.look(task, 14)
    celery.now += 10.0

    assert task.ready()
    with pytest.raises(CeleryStepLost, match="submitted to Celery 5 times"):
        task.get()
    assert "from failure" in celery.warnings[-1]


def test_a_step_of_a_run_that_is_terminated_is_not_submitted_again() -> None:
    celery = Celery()
    lost, killed = celery.add(), celery.add()
    revoked = pytest.importorskip("celery.exceptions").TaskRevokedError
    for task in (lost, killed):
        task.revoke()
    celery.submitted[1].result, celery.submitted[1].is_ready = WorkerLostError(), True
    celery.look(lost, 2)
    celery.now += 10.0

    for task in (lost, killed):
        assert task.ready()
        with pytest.raises(revoked):
            task.get()
    assert len(celery.submitted) == 2


def test_a_step_that_failed_is_not_submitted_again() -> None:
    celery = Celery()
    task = celery.add()
    celery.submitted[0].result, celery.submitted[0].is_ready = ValueError(), True

    assert task.ready()
    assert len(celery.submitted) == 1


def test_workers_that_do_not_answer_are_logged_and_not_taken_for_lost() -> None:
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


def test_what_an_app_of_celery_submits_is_watched_and_can_be_submitted_again() -> None:
    """As dagster-celery's executor does it: a task made for the app, and its signature."""
    celery = Celery()
    app = pytest.importorskip("celery").Celery(
        broker="memory://",
        backend="cache+memory://",
        task_cls=watched_task(celery.tasks),
        set_as_current=False,
    )

    @app.task(name="execute_plan")  # type: ignore[untyped-decorator]
    def execute_plan(execute_step_args_packed: object) -> None: ...

    step = {"step_keys_to_execute": ["copy[worker_1]"]}

    task = execute_plan.si(execute_step_args_packed=step).apply_async(queue="dagster", priority=5)

    first = task.result.id
    celery.known = {first}
    celery.look(task, 1)
    celery.known = set()
    celery.look(task, 3)
    assert task.result.id != first
    assert celery.warnings == [
        "copy[worker_1] is submitted to Celery again: no worker has it any more"
    ]


def test_a_broker_that_is_not_reached_gives_no_answer_and_is_logged_once() -> None:
    app = pytest.importorskip("celery").Celery(
        broker=f"redis://:secret@{NOWHERE}/0",
        config_source={"broker_transport_options": {"max_retries": 1, "interval_start": 0}},
        set_as_current=False,
    )
    warnings: list[str] = []
    workers = Workers(app, 0.1, warnings.append)

    assert (workers.known_tasks(["task 0"]), workers.ping()) == (None, None)

    [warning] = warnings
    assert warning.startswith(f"Celery's broker at redis://:**@{NOWHERE}/0 can't be reached: ")
