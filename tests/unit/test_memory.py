"""One budget of memory: capacity bounds pieces, use pauses reading, and nothing gets stuck."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from etl_dagster.model.stores import ApplyWorker
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.machine_memory import memory_limit, resident_bytes
from etl_dagster.runtime.memory import BudgetedReader, MemoryBudget
from etl_dagster.runtime.streaming.delivery import Kept
from etl_dagster.runtime.streaming.feed import Feed
from tests.support.deliveries import ORDERS, Flaky, Side
from tests.support.scripted import ManualClock, ScriptedStream, transaction

MB = 1024**2


@dataclass
class Process:
    """A process whose use of memory the test decides."""

    max_mb: int = 100
    used_mb: int = 10
    relieved: int = 0
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.budget = MemoryBudget(
            self.max_mb * MB,
            measure=lambda: self.used_mb * MB,
            relieve=self.relieve,
            clock=self.clock,
        )

    def relieve(self) -> None:
        self.relieved += 1

    def uses(self, mb: int) -> None:
        self.used_mb = mb
        self.clock.pass_by(0.1)

    def reader(self, is_busy: Callable[[], bool] = lambda: False) -> BudgetedReader:
        return self.budget.reader(is_busy)


def test_capacity_bounds_batches_and_chunks() -> None:
    small, large = Process(max_mb=64).budget, Process(max_mb=4096).budget

    assert small.batch_bytes(8 * MB) == 2 * MB
    assert large.batch_bytes(8 * MB) == 8 * MB
    assert (small.most_chunks, large.most_chunks) == (1, 32)


def test_reading_pauses_at_one_bound_and_resumes_below_another() -> None:
    process = Process()
    reader, _ = process.reader(), process.reader(lambda: True)

    answers = []
    for mb in (79, 80, 76, 71, 69, 75):
        process.uses(mb)
        answers.append((mb, reader.may_read()))

    assert answers == [(79, True), (80, False), (76, False), (71, False), (69, True), (75, True)]


def test_allocators_are_asked_before_reading_pauses() -> None:
    process = Process(used_mb=90)
    process.budget._relieve = lambda: process.uses(50)

    assert process.reader().may_read()


def test_readers_take_turns_if_nothing_is_left_to_write(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = Process(used_mb=120)
    busy = {"first": True, "second": False}
    first = process.reader(lambda: busy["first"])
    second = process.reader(lambda: busy["second"])
    assert not first.may_read()
    assert not second.may_read()

    busy["first"] = False
    assert not second.may_read(), "the other one has waited for longer"
    with caplog.at_level(logging.WARNING):
        process.clock.pass_by(0.2)
        process.budget._logged_at = float("-inf")
        assert first.may_read()

    assert "nothing is left to be written" in caplog.text
    assert second.may_read(), "the first one has read nothing"


def test_a_reader_that_no_longer_asks_is_not_waited_for() -> None:
    process = Process(used_mb=120)
    busy = True
    gone, other = process.reader(), process.reader()
    third = process.reader(lambda: busy)
    assert not gone.may_read()
    assert not other.may_read()

    busy = False
    process.clock.pass_by(1.0)

    assert other.may_read()
    third.close()


def test_the_note_says_why_reading_pauses() -> None:
    process = Process()
    assert process.budget.note is None

    process.reader(lambda: True)
    process.uses(90)
    note = process.budget.note

    assert note is not None
    assert "reading pauses" in note
    assert "memory.max_bytes" in note
    process.uses(60)
    assert process.budget.note is None


def test_chunks_wait_for_each_other_where_memory_is_short() -> None:
    process = Process(max_mb=1024, used_mb=1000)
    stop = threading.Event()
    with process.budget.chunk(stop):
        stop.set()
        with pytest.raises(Stopped), process.budget.chunk(stop):
            pass
    with process.budget.chunk(stop):
        pass


def test_no_more_chunks_at_a_time_than_there_is_capacity_for() -> None:
    process = Process(max_mb=64)
    stop = threading.Event()
    with process.budget.chunk(stop):
        stop.set()
        with pytest.raises(Stopped), process.budget.chunk(stop):
            pass


def test_a_chunk_begins_only_if_there_is_room_for_it_and_for_those_under_way() -> None:
    """What they are about to take counts before they have taken it."""
    process = Process(max_mb=1024, used_mb=400)
    begun: list[ExitStack] = []
    stop = threading.Event()
    stop.set()

    def begin_all(used_mb: int) -> int:
        """How many chunks are under way once no other may begin."""
        process.uses(used_mb)
        with contextlib.suppress(Stopped):
            while True:
                entered = ExitStack()
                entered.enter_context(process.budget.chunk(stop))
                begun.append(entered)
        return len(begun)

    found = [begin_all(400), begin_all(500), begin_all(780)]
    begun.pop(0).close()
    found.append(begin_all(780))
    found.append(begin_all(500))
    for each in begun:
        each.close()

    assert found == [6, 6, 6, 5, 6]


def test_a_stream_arrives_a_piece_at_a_time_however_little_memory_there_is() -> None:
    """Also where one row takes more than the budget: it is let through, and so is the next one."""
    process = Process(used_mb=120)
    side = Side(Flaky(), {})
    script: list[Callable[[], None] | bytes] = []
    for number in range(1, 6):
        script += transaction(1000 + 100 * number, number)
    was_busy: list[bool] = []

    class Stream(ScriptedStream):
        def read(self, timeout_s: float) -> bool:
            was_busy.append(feed.is_writing)
            return super().read(timeout_s)

    feed = Feed(
        replace(side.parts, memory=process.budget),
        side,
        lambda session: Stream(session, script),
        side.schemas,
        kept=Kept(ApplyWorker()),
        name="feed under test",
    )

    feed.run()

    assert side.ids(ORDERS) == [1, 2, 3, 4, 5]
    assert not any(was_busy)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"proc/meminfo": "MemTotal: 2048 kB\n"}, 2 * MB, id="a machine"),
        pytest.param({"sys/fs/cgroup/memory.max": "4096\n"}, 4096, id="a container, cgroup v2"),
        pytest.param({"sys/fs/cgroup/memory.max": "max\n"}, None, id="unlimited, cgroup v2"),
        pytest.param(
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n"}, 8192, id="cgroup v1"
        ),
        pytest.param(
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "proc/meminfo": "MemTotal: 2048 kB\n",
            },
            2 * MB,
            id="unlimited, cgroup v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/etl.service\n",
                "sys/fs/cgroup/system.slice/memory.max": "3000\n",
                "sys/fs/cgroup/system.slice/etl.service/memory.max": "max\n",
            },
            3000,
            id="a service, limited by what is around it",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,memory:/docker/1\n",
                "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "5000\n",
            },
            5000,
            id="one of several controllers, cgroup v1",
        ),
    ],
)
def test_the_limit_is_the_least_of_cgroups_and_machine(
    tmp_path: Path, files: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sysconf")
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert memory_limit(tmp_path) == expected


def test_the_resident_set_is_that_of_this_process() -> None:
    found = resident_bytes()
    assert found is None or found > 10 * MB
