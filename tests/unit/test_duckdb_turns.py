"""When the DuckDB file is closed, and how long it is left to processes that only try again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from etl_dagster.destinations.duckdb.turns import WriterTurns


class Clock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class File:
    """What `DatabaseFile` does with its turns, at times that a test gives, in milliseconds."""

    clock: Clock = field(default_factory=Clock)
    turns: WriterTurns = field(init=False)

    def __post_init__(self) -> None:
        self.turns = WriterTurns(self.clock)

    def spend(self, ms: float) -> None:
        self.clock.now += ms / 1000

    def open(self, *, ms: float = 20, others_ms: float = 0) -> int:
        """Open the file when it may be; returns for how many milliseconds it was left to others.

        Args:
            others_ms: how long another process has it when it may be opened.
        """
        left_ms = self.turns.before_opening() * 1000
        self.spend(left_ms)
        self.turns.opening()
        if others_ms:
            self.spend(others_ms)
            self.turns.opening()
        self.spend(ms)
        self.turns.opened()
        return round(left_ms)

    def write(self, more_follows: bool | None, *, ms: float = 20, costly: bool = False) -> None:
        self.spend(ms)
        self.turns.written(more_follows, is_closing_costly=costly)

    def close(self, *, ms: float = 20) -> None:
        self.spend(ms)
        self.turns.closed()

    def batch(self, more_follows: bool, *, ms: float = 20) -> int:
        """Open, write, close; returns as `open`."""
        left_ms = self.open()
        self.write(more_follows, ms=ms)
        self.close()
        return left_ms


@pytest.fixture
def file() -> File:
    return File()


def test_after_a_batch_that_is_not_full_the_file_is_closed_at_once(file: File) -> None:
    file.open()
    file.write(False)

    assert file.turns.linger_s == 0


def test_after_a_full_batch_the_file_waits_for_the_next_one(file: File) -> None:
    file.open()
    file.write(True)
    file.spend(299)

    assert file.turns.linger_s == pytest.approx(0.001)
    file.spend(1)
    assert file.turns.linger_s == 0


def test_writes_that_come_soon_after_one_another_find_the_file_open(file: File) -> None:
    file.open()
    file.write(None)
    file.close()
    assert file.turns.linger_s < 0.03

    file.spend(200)
    file.open()
    file.write(None)
    assert file.turns.linger_s == pytest.approx(0.3)

    file.close()
    file.spend(400)
    file.open()
    file.write(None)
    assert file.turns.linger_s == pytest.approx(0.03)


@pytest.mark.parametrize(("costly", "longest_ms"), [(False, 1000), (True, 4000)])
def test_the_file_is_held_up_to_a_limit_while_full_batches_come(
    file: File, costly: bool, longest_ms: int
) -> None:
    file.open()
    file.write(True, ms=longest_ms - 1, costly=costly)
    assert not file.turns.is_held_long
    file.write(True, ms=2, costly=costly)

    assert file.turns.is_held_long


def test_full_batches_that_wait_leave_the_file_to_others_after_a_long_hold(file: File) -> None:
    """Closing after a long hold takes long; a turn counted from before it would be over by then."""
    file.open()
    file.write(True, ms=1100)
    file.close(ms=500)

    assert file.open() == 30


def test_full_batches_between_readers_that_announce_themselves_do_not_pause_each_time(
    file: File,
) -> None:
    turns = [file.batch(more_follows=True) for _ in range(30)]

    # 1,810 ms, with one turn after the first second.
    assert [ms for ms in turns if ms] == [30]


def test_batches_that_follow_without_a_pause_leave_the_file_to_others(
    file: File,
) -> None:
    """Otherwise a reader that keeps trying is refused by one batch after the other."""
    turns = [file.batch(more_follows=False, ms=60) for _ in range(5)]

    # The first one comes after a long time without any.
    assert turns == [0, 0, 30, 0, 30]


def test_batches_with_pauses_in_between_are_not_delayed(file: File) -> None:
    turns = []
    for _ in range(10):
        turns.append(file.batch(more_follows=False, ms=100))
        file.spend(31)

    assert turns == [0] * 10


def test_what_is_left_of_a_turn_is_waited_for(file: File) -> None:
    file.batch(more_follows=False, ms=100)
    file.spend(12)

    assert file.batch(more_follows=False) == 18


@pytest.mark.parametrize(("ms", "turn_ms"), [(10, 30), (70, 70), (500, 100)])
def test_where_opening_takes_long_a_turn_does_too(file: File, ms: int, turn_ms: int) -> None:
    """A reader that is refused has done half of it before it learns so."""
    file.open(ms=ms)
    file.write(False, ms=100)
    file.close()

    assert file.open() == turn_ms


def test_waiting_for_a_reader_does_not_count_as_opening(file: File) -> None:
    file.open(ms=20, others_ms=80)
    file.write(False, ms=100)
    file.close()

    assert file.open() == 30


def test_a_reader_that_had_the_file_had_its_turn(file: File) -> None:
    file.batch(more_follows=False, ms=60)
    file.open(others_ms=40)
    file.write(False, ms=10)
    file.close()

    assert file.open() == 0
