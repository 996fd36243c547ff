"""A few threads read ahead of the one that takes what they make, and none outlives the reading."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

import pytest

from etl_dagster.read_ahead import ReadAhead
from etl_dagster.threads import Background
from tests.support.waiting import PATIENCE_S, wait_until

_NAME = "test of reading ahead"


class Reading:
    """Gives each piece's parts, which are its characters; notes what becomes of its readers."""

    def __init__(self, *, waits_at: str = "", fails_at: str = "") -> None:
        self.waits_at = waits_at
        self.fails_at = fails_at
        self.given: list[str] = []
        self.opened = self.closed = 0
        #: A reader has come to a part at which it waits until it is canceled.
        self.waits = threading.Event()
        self.canceled = threading.Event()

    @contextlib.contextmanager
    def open(self) -> Iterator[PieceReader]:
        self.opened += 1
        try:
            yield PieceReader(self)
        finally:
            self.closed += 1

    def ahead(
        self,
        pieces: Sequence[str],
        *,
        count: int = 2,
        require_wanted: Callable[[], None] = lambda: None,
    ) -> Iterator[str]:
        return ReadAhead[str, str](
            pieces,
            self.open,
            count=count,
            name=_NAME,
            require_wanted=require_wanted,
        ).made()


class PieceReader:
    def __init__(self, of: Reading) -> None:
        self.of = of
        self.canceled = threading.Event()

    def read(self, piece: str) -> Generator[str, None, None]:
        for part in piece:
            if part == self.of.waits_at:
                self.of.waits.set()
                assert self.canceled.wait(PATIENCE_S), "was not canceled"
                raise OSError("canceled")
            if part == self.of.fails_at:
                assert not self.of.waits_at or self.of.waits.wait(PATIENCE_S)
                raise ValueError(f"{part} can't be read")
            self.of.given.append(part)
            yield part

    def cancel(self) -> None:
        self.canceled.set()
        self.of.canceled.set()


def reading_threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, Background) and thread.name == _NAME
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_part_of_each_piece_is_given_once(count: int) -> None:
    reading = Reading()
    assert sorted(reading.ahead(["12", "", "345", "6"], count=count)) == list("123456")
    assert reading.opened == reading.closed == min(count, 4)
    assert reading_threads() == []


def test_without_pieces_nothing_is_opened() -> None:
    reading = Reading()
    assert list(reading.ahead([])) == []
    assert reading.opened == 0


def test_an_error_in_a_thread_reaches_the_reader_and_cancels_the_others() -> None:
    reading = Reading(waits_at="w", fails_at="x")
    with pytest.raises(ValueError, match="x can't be read"):
        list(reading.ahead(["w", "x"]))
    assert reading.canceled.is_set()
    assert reading.opened == reading.closed
    assert reading_threads() == []


def test_an_error_on_opening_a_reader_reaches_the_reader() -> None:
    @contextlib.contextmanager
    def refused() -> Iterator[PieceReader]:
        raise ConnectionError("refused")
        yield

    ahead = ReadAhead[str, str](["1"], refused, count=2, name=_NAME, require_wanted=lambda: None)
    with pytest.raises(ConnectionError, match="refused"):
        list(ahead.made())
    assert reading_threads() == []


def test_the_end_cancels_the_reads_under_way_and_waits_for_them() -> None:
    reading = Reading(waits_at="w")
    made = reading.ahead(["1w", "2w"])
    next(made)
    assert reading.waits.wait(PATIENCE_S)
    made.close()  # type: ignore[attr-defined]
    assert reading.canceled.is_set()
    assert reading.closed == reading.opened
    assert reading_threads() == []


def test_an_iterator_that_is_dropped_leaves_no_thread() -> None:
    reading = Reading()
    made = reading.ahead(["123456789" * 10] * 3)
    next(made)
    del made
    assert reading_threads() == []
    assert len(reading.given) < 270


def test_an_iterator_that_is_never_begun_starts_no_thread() -> None:
    reading = Reading()
    made = reading.ahead(["1"])
    assert reading_threads() == []
    del made
    assert reading.opened == 0


def test_a_slow_consumer_is_not_read_far_ahead_of() -> None:
    """What is read waits in memory: two parts for each thread, and the one in its hands."""
    reading = Reading()
    made = reading.ahead(["1" * 100], count=1)
    next(made)
    wait_until(lambda: len(reading.given) == 4)
    # The queue is full, and the thread has one part more: it can't get any further.
    assert not reading.canceled.wait(0.05)
    assert len(reading.given) == 4
    assert len(list(made)) == 99


def test_reads_that_are_no_longer_wanted_are_ended() -> None:
    reading = Reading(waits_at="w")

    def require_wanted() -> None:
        if reading.waits.is_set():
            raise InterruptedError("not wanted")

    with pytest.raises(InterruptedError, match="not wanted"):
        list(reading.ahead(["w"], require_wanted=require_wanted))
    assert reading.canceled.is_set()
    assert reading_threads() == []


def test_a_thread_that_does_not_end_is_left_alone_once_it_is_given_up() -> None:
    """A server that doesn't answer doesn't answer a request to cancel, either."""
    released = threading.Event()

    class Stuck(PieceReader):
        def read(self, piece: str) -> Generator[str, None, None]:
            yield piece
            released.wait(PATIENCE_S)

        def cancel(self) -> None:
            raise OSError("the server doesn't answer")

    @contextlib.contextmanager
    def stuck() -> Iterator[PieceReader]:
        yield Stuck(Reading())

    made = ReadAhead[str, str](
        ["1"],
        stuck,
        count=1,
        name=_NAME,
        require_wanted=lambda: None,
        is_given_up=lambda: True,
    ).made()
    next(made)
    made.close()  # type: ignore[attr-defined]
    try:
        assert [thread.is_alive() for thread in reading_threads()] == [True]
    finally:
        released.set()
        for thread in reading_threads():
            thread.join(PATIENCE_S)
    assert reading_threads() == []
