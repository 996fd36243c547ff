"""Heartbeats are written now and then, and measure how long a change takes to become durable."""

from __future__ import annotations

import logging

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.streaming.heartbeat import Beat, Heart, Latency
from etl_dagster.source.heartbeat import emit_heartbeat
from tests.support.scripted import ManualClock, ScriptedSource, config


class Fixture:
    def __init__(self, heartbeat_s: float = 30.0, *, standby: bool = False) -> None:
        self.clock = ManualClock()
        self.lsn: Lsn | None = Lsn(1000)
        source = ScriptedSource({emit_heartbeat: lambda: self.lsn})
        self.asked = source.asked
        settings = config().source.model_copy(
            update={"heartbeat_s": heartbeat_s, "standby": standby}
        )
        self.heart = Heart(settings, source, self.clock)
        self.latency = Latency(self.clock)


def test_a_heartbeat_is_due_once_in_each_interval() -> None:
    fixture = Fixture()
    beats = []
    for _ in range(7):
        beats.append(fixture.heart.beat_if_due())
        fixture.clock.pass_by(10.0)

    assert beats == [None, None, None, Beat(Lsn(1000), 30.0), None, None, Beat(Lsn(1000), 60.0)]


def test_an_interval_of_zero_means_none() -> None:
    fixture = Fixture(0.0)
    fixture.clock.pass_by(1e6)

    assert fixture.heart.beat_if_due() is None
    assert fixture.asked == []


def test_a_source_that_refuses_heartbeats_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fixture = Fixture()
    fixture.lsn = None
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fixture.clock.pass_by(30.0)
            assert fixture.heart.beat_if_due() is None

    assert caplog.text.count("the source refuses heartbeats") == 1
    # It may allow them later, such as after a failover.
    assert len(fixture.asked) == 3


def test_a_standby_without_its_primary_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture(standby=True)
    fixture.lsn = None
    fixture.clock.pass_by(30.0)
    with caplog.at_level(logging.INFO):
        assert fixture.heart.beat_if_due() is None

    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "there is no source.primary_dsn" in record.message


def test_the_latency_ends_once_everything_up_to_the_heartbeat_is_durable() -> None:
    fixture = Fixture()
    latency = fixture.latency
    assert latency.seconds is None
    latency.sent(Beat(Lsn(1000), 0.0))
    fixture.clock.pass_by(2.0)
    latency.durable(Lsn(999))
    assert latency.waits_for == Lsn(1000)
    fixture.clock.pass_by(1.0)
    latency.durable(Lsn(1000))
    fixture.clock.pass_by(50.0)

    assert latency.seconds == 3.0
    assert latency.waits_for is None


def test_a_heartbeat_that_is_late_counts_with_its_age() -> None:
    """Otherwise a destination that hangs would keep showing its former latency."""
    fixture = Fixture()
    latency = fixture.latency
    latency.sent(Beat(Lsn(1000), 0.0))
    fixture.clock.pass_by(3.0)
    latency.durable(Lsn(2000))
    latency.sent(Beat(Lsn(3000), 3.0))
    fixture.clock.pass_by(1.0)
    assert latency.seconds == 3.0
    fixture.clock.pass_by(29.0)
    latency.sent(Beat(Lsn(4000), 33.0))
    fixture.clock.pass_by(10.0)

    assert latency.seconds == 40.0
