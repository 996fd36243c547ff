"""From a stream to batches: when a batch is closed, when an idle position is confirmed, the end.

No server, and no time that passes: the stream is made by hand, and so is the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from etl_dagster.errors import SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.protocol.batch import POSTGRES_EPOCH_US
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.streaming.delivery import Kept
from etl_dagster.runtime.streaming.feed import Feed
from tests.support.deliveries import ORDERS, Flaky, Side
from tests.support.scripted import ScriptedStream, transaction
from tests.support.waiting import wait_until
from tests.unit import wire


class Fixture:
    """A feed into memory, and what it reads."""

    def __init__(self, **batch: int) -> None:
        self.side = side = Side(Flaky(), batch)
        self.script: list[Callable[[], None] | bytes] = []
        self.feed = Feed(
            side.parts,
            side,
            self._open,
            side.schemas,
            kept=Kept(ApplyWorker()),
            name="feed under test",
            # The transactions are of 2000-01-01, by the source's clock.
            wall_clock=lambda: POSTGRES_EPOCH_US / 1e6 + 5.0,
        )

    def _open(self, session: ReplicationSession) -> ScriptedStream:
        self.stream = ScriptedStream(session, self.script)
        return self.stream

    def passes(self, seconds: float) -> None:
        self.script.append(partial(self.side.clock.pass_by, seconds))

    def sees(self, *ids: int) -> None:
        """At this place in the script, the destination has these rows or gets them by itself."""
        self.script.append(lambda: wait_until(lambda: self.side.ids(ORDERS) == list(ids)))

    def idles(self) -> None:
        self.script.append(lambda: wait_until(lambda: not self.feed.is_writing))


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    made.side.stop.set()


def test_a_batch_is_closed_once_its_first_change_is_old(fixture: Fixture) -> None:
    fixture.script += transaction(2000, 1)
    fixture.passes(0.9)
    fixture.script += transaction(2100, 2)
    fixture.script.append(lambda: pytest.fail("too early") if fixture.side.ids(ORDERS) else None)
    fixture.passes(0.2)
    fixture.sees(1, 2)

    fixture.feed.run()

    assert fixture.side.destination.written == 1
    assert fixture.side.progress == Lsn(2150)


@pytest.mark.parametrize("bounds", [{"max_rows": 3}, {"max_bytes": 1024}])
def test_a_batch_is_closed_once_it_is_full_even_inside_a_transaction(
    bounds: dict[str, int],
) -> None:
    fixture = Fixture(**bounds)
    ids = range(3 if "max_rows" in bounds else 30)
    fixture.script += transaction(2000, *ids, 98, 99)[:-2]
    fixture.script.append(lambda: wait_until(lambda: {*ids[:3]} <= {*fixture.side.ids(ORDERS)}))

    fixture.feed.run()

    assert fixture.side.durable[0] is None  # the transaction is not over
    assert fixture.side.progress is None


def test_an_idle_position_inside_a_transaction_is_not_confirmed(fixture: Fixture) -> None:
    """What follows in the transaction was not applied."""
    fixture.script += [*transaction(2000, 1)[:2], wire.keepalive(3000)]
    fixture.passes(11.0)
    fixture.script.append(lambda: None)

    fixture.feed.run()

    assert (fixture.side.durable, fixture.side.progress) == ([], None)


def test_an_idle_position_is_confirmed_only_after_what_came_before_is_durable(
    fixture: Fixture,
) -> None:
    fixture.side.destination.durable = durable = Future()
    fixture.script += transaction(2000, 1)
    fixture.passes(1.0)
    fixture.script += [
        lambda: wait_until(lambda: fixture.side.destination.written == 1),
        wire.keepalive(3000),
        lambda: None if fixture.side.progress is None else pytest.fail("confirmed too early"),
        lambda: durable.set_result(None),
        lambda: wait_until(lambda: not fixture.feed.is_writing),
        lambda: None,
    ]

    fixture.feed.run()

    assert fixture.side.durable == [Lsn(2050), Lsn(3000)]


def test_a_stop_ends_the_stream_and_leaves_what_is_not_durable(fixture: Fixture) -> None:
    """It comes again with the next stream."""
    fixture.script += [*transaction(2000, 1), fixture.side.stop.set, wire.keepalive(3000)]

    fixture.feed.run()

    assert (fixture.side.ids(ORDERS), fixture.side.progress) == ([], None)
    assert fixture.script == [wire.keepalive(3000)]
    assert fixture.stream.calls == ["open", "close"]


def test_a_stream_stays_at_its_start_until_it_brings_something(fixture: Fixture) -> None:
    positions: list[Lsn] = []

    def look() -> None:
        positions.append(fixture.feed.position)

    begin, _, insert, commit = transaction(2000, 1)
    fixture.script += [look, wire.keepalive(1500), look, begin, insert, look, commit, look]

    fixture.feed.run()

    # Inside of a transaction, past its commit record's beginning: it can't be left to another.
    assert positions == [Lsn(1000), Lsn(1500), Lsn(2001), Lsn(2050)]


def test_a_position_that_is_not_reached_is_requested_now_and_then(fixture: Fixture) -> None:
    asked: list[int] = []

    def look(lsn: int) -> None:
        fixture.feed.has_passed(Lsn(lsn))
        asked.append(fixture.stream.calls.count("request_keepalive"))

    fixture.script += [partial(look, 3000), partial(look, 3000)]
    fixture.passes(0.2)
    fixture.script += [partial(look, 3000), partial(look, 4000), wire.keepalive(4000)]
    fixture.passes(0.2)
    fixture.script.append(partial(look, 4000))

    fixture.feed.run()

    assert asked == [1, 1, 2, 3, 3]


def test_a_stream_that_is_over_ends_without_a_failure_and_keeps_what_was_closed(
    fixture: Fixture,
) -> None:
    fixture.script += transaction(2000, 1)
    fixture.passes(1.0)
    fixture.script += transaction(2100, 2)  # not closed: it comes again by the next stream

    fixture.feed.run()

    assert fixture.side.ids(ORDERS) == [1]
    assert fixture.stream.calls == ["open", "close"]


def test_an_idle_position_is_confirmed_now_and_then(fixture: Fixture) -> None:
    fixture.script += [wire.keepalive(3000), wire.keepalive(3100)]
    fixture.passes(9.0)
    fixture.script.append(wire.keepalive(3200))
    fixture.passes(1.1)
    fixture.idles()

    fixture.feed.run()

    assert fixture.side.durable == [Lsn(3000), Lsn(3200)]


def test_a_hurry_confirms_an_idle_position_at_once(fixture: Fixture) -> None:
    fixture.script.append(wire.keepalive(3000))
    fixture.idles()
    fixture.script += [lambda: fixture.feed.hurry(Lsn(3100)), wire.keepalive(3100)]

    fixture.feed.run()

    assert fixture.side.durable == [Lsn(3000), Lsn(3100)]
    assert "request_keepalive" in fixture.stream.calls


def test_an_idle_position_past_an_awaited_one_is_confirmed_at_once(fixture: Fixture) -> None:
    fixture.script.append(wire.keepalive(3000))
    fixture.idles()
    fixture.script += [
        lambda: fixture.feed.confirm_from(Lsn(3150)),
        wire.keepalive(3100),
        wire.keepalive(3200),
        wire.keepalive(3300),
    ]

    fixture.feed.run()

    assert fixture.side.durable == [Lsn(3000), Lsn(3200)]


def test_an_awaited_position_closes_no_batch(fixture: Fixture) -> None:
    """A heartbeat measures how long changes take; it must not make them quicker."""
    fixture.script += transaction(2000, 1)
    fixture.script.append(lambda: fixture.feed.confirm_from(Lsn(2040)))
    fixture.script.append(lambda: pytest.fail("too early") if fixture.feed.is_writing else None)
    fixture.passes(1.0)
    fixture.sees(1)

    fixture.feed.run()

    assert fixture.side.durable[0] == Lsn(2050)


def test_a_hurry_closes_the_batch_that_reaches_its_goal(fixture: Fixture) -> None:
    fixture.script += transaction(2000, 1)
    fixture.script.append(lambda: fixture.feed.hurry(Lsn(2040)))
    fixture.sees(1)

    fixture.feed.run()

    assert fixture.side.progress == Lsn(2050)


def test_a_streams_failure_is_raised_once_what_was_handed_over_is_durable(
    fixture: Fixture,
) -> None:
    def broken() -> None:
        raise SourceUnreachable("the line is cut")

    fixture.script += transaction(2000, 1)
    fixture.passes(1.0)
    fixture.script += [lambda: None, broken]

    with pytest.raises(SourceUnreachable, match="the line is cut"):
        fixture.feed.run()

    assert fixture.side.progress == Lsn(2050)
    assert fixture.stream.calls[-1] == "close"


def test_the_lag_is_the_age_of_the_oldest_commit_that_is_not_durable(fixture: Fixture) -> None:
    lags: list[float] = []
    fixture.script += transaction(2000, 1)
    fixture.script.append(lambda: lags.append(fixture.feed.lag_s))
    fixture.passes(1.0)
    fixture.idles()
    fixture.script.append(lambda: lags.append(fixture.feed.lag_s))

    fixture.feed.run()

    assert lags == [5.0, 0.0]
    assert fixture.feed.received == Lsn(2050)
