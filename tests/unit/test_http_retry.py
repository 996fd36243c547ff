"""What is tried again, when, and what any other answer means."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_dagster.destinations.http.answers import BodyTooLarge, WriteConflict, refusal
from etl_dagster.destinations.http.retry import (
    Patience,
    TryAgain,
    is_transient,
    parse_retry_after,
)
from etl_dagster.errors import (
    DestinationError,
    DestinationUnreachable,
    InvalidState,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.testing.changes import ORDERS

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


# -- what an answer means ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 599])
def test_these_are_tried_again(status: int) -> None:
    assert is_transient(status)


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 404, 409, 410, 413, 422, 499])
def test_these_are_not(status: int) -> None:
    assert not is_transient(status)


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("events", 400, TableWriteFailed),
        ("events", 413, BodyTooLarge),
        ("rows", 422, TableWriteFailed),
        ("events", 409, WriteConflict),
        ("rows", 410, InvalidState),
        ("events", 410, DestinationError),
        ("events", 412, Superseded),
        ("events", 401, DestinationError),
        ("events", 403, DestinationError),
        ("events", 404, DestinationError),
        ("events", 405, DestinationError),
        ("events", 307, DestinationError),
    ],
)
def test_each_refusal_has_its_error(path: str, status: int, expected: type) -> None:
    error = refusal(status, f"POST https://example.com/{path}", "the-key", ORDERS)

    assert type(error) is expected
    assert f"POST https://example.com/{path}" in error.reason
    assert str(status) in error.reason
    assert error.solution
    # The pipeline's own retries don't send it again either, unless it asks for that.
    assert error.retryable == (expected is WriteConflict)


def test_a_refused_table_is_named_with_the_key_to_look_for() -> None:
    error = refusal(422, "POST https://example.com/events", "shop:1:events:0/1:0-0/1:7", ORDERS)

    assert isinstance(error, TableWriteFailed)
    assert error.table_id == ORDERS.id
    assert "public.orders" in error.reason
    assert "shop:1:events:0/1:0-0/1:7" in error.solution


# -- Retry-After -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, expected: float | None) -> None:
    assert parse_retry_after(header, NOW) == expected


_PIECES = [
    "Wed,",
    "1",
    "31",
    "Nov",
    "Jan",
    "0",
    "9" * 20,
    "2024",
    "12:00",
    "25:61:61",
    "GMT",
    "-",
    "+9999",
]


@given(st.text() | st.lists(st.sampled_from(_PIECES), max_size=7).map(" ".join))
@example(f"Jan {'9' * 20} Z 12:00 31 1")
def test_no_header_is_an_error(header: str) -> None:
    found = parse_retry_after(header, NOW)

    assert found is None or found >= 0


# -- patience ----------------------------------------------------------------------------------


class Requests:
    """Fails as told, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self._failures:
            raise self._failures.pop(0)
        return "done"


class Unhurried(threading.Event):
    """Ends each pause at once, and keeps how long it should have been."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


class StoppedInAPause(threading.Event):
    """Ends each pause as a stop of the pipeline does."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


def test_a_request_is_tried_until_it_succeeds() -> None:
    requests = Requests(TryAgain("500"), TryAgain("refused"), TryAgain("503"))
    closing = Unhurried()

    assert Patience(4, closing).run(requests, "POST x") == "done"
    assert requests.count == 4
    for pause_s, least_s in zip(closing.pauses, (0.1, 0.3, 0.9), strict=True):
        assert least_s <= pause_s <= least_s + 0.2


def test_no_pause_is_longer_than_five_seconds_and_none_ends_after_all_too_long() -> None:
    now, requests = 1000.0, Requests(*(TryAgain("500") for _ in range(30)))

    class Passing(Unhurried):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += timeout or 0
            return super().wait(timeout)

    closing = Passing()
    with pytest.raises(DestinationUnreachable, match="500; tried"):
        Patience(30, closing, clock=lambda: now).run(requests, "POST x")

    assert max(closing.pauses) == 5.0
    assert 40 < sum(closing.pauses) <= 45


def test_the_server_decides_when_if_it_says_so() -> None:
    """Not before, and not all at the same moment."""
    closing = Unhurried()
    requests = Requests(TryAgain("429", retry_after_s=2.0), TryAgain("500"))

    assert Patience(4, closing).run(requests, "POST x") == "done"
    assert 2.0 <= closing.pauses[0] <= 2.2
    assert closing.pauses[1] < 2.0


@pytest.mark.parametrize("retry_after_s", [None, 9.0])
def test_a_stop_ends_the_pause_before_the_next_try_and_the_tries(
    retry_after_s: float | None,
) -> None:
    requests = Requests(TryAgain("429", retry_after_s))

    with pytest.raises(DestinationUnreachable, match=r"POST x: 429$") as caught:
        Patience(4, StoppedInAPause()).run(requests, "POST x")

    assert requests.count == 1
    assert caught.value.retryable


def test_no_request_is_begun_after_a_stop() -> None:
    closing, requests = threading.Event(), Requests()
    closing.set()

    with pytest.raises(
        DestinationUnreachable, match="POST x: not sent, because the pipeline stops"
    ):
        Patience(4, closing).run(requests, "POST x")

    assert requests.count == 0


def test_enough_failures_are_an_unreachable_destination_with_the_last_reason() -> None:
    requests = Requests(*(TryAgain(f"failure {n}") for n in range(9)))

    with pytest.raises(DestinationUnreachable, match="POST x: failure 2; tried 3 times") as caught:
        Patience(3, Unhurried()).run(requests, "POST x")

    assert caught.value.retryable
    assert requests.count == 3


def test_a_failure_that_is_not_transient_is_not_tried_again() -> None:
    requests = Requests(KeyError("a bug"))

    with pytest.raises(KeyError):
        Patience(4, threading.Event()).run(requests, "POST x")

    assert requests.count == 1


def test_nothing_is_tried_again_once_the_destination_closes() -> None:
    closing = threading.Event()

    def request() -> None:
        closing.set()
        raise TryAgain("500")

    with pytest.raises(DestinationUnreachable, match=r"500$"):
        Patience(4, closing).run(request, "POST x")


def test_a_long_pause_that_the_server_asks_for_is_kept_by_all_requests() -> None:
    """The write fails, so that a stop isn't kept waiting, and the pipeline's next try waits."""
    now = 1000.0
    closing = threading.Event()
    patience = Patience(4, closing, clock=lambda: now)
    asked = Requests(TryAgain("429", retry_after_s=120))
    with pytest.raises(DestinationUnreachable, match="429"):
        patience.run(asked, "POST x")
    assert asked.count == 1

    closing.set()  # waiting for its turn would take seconds
    other = Requests()
    with pytest.raises(DestinationUnreachable, match="of which 120 s are left"):
        patience.run(other, "POST y")
    assert other.count == 0

    closing.clear()
    now += 121
    assert patience.run(other, "POST y") == "done"
