"""How long a replicator may continue after a tick."""

from __future__ import annotations

from etl_dagster.integrations.dagster.sensor.supervisor import TickPauses


def test_a_lease_outlasts_the_pauses_between_ticks_that_come_late() -> None:
    now = 0.0
    pauses = TickPauses(clock=lambda: now)
    leases = []
    for pause_s in (0, 5, 5, 40, 5):
        now += pause_s
        leases.append(pauses.lease_s(30.0))
    assert leases == [30.0, 30.0, 30.0, 120.0, 120.0]
    for _ in range(20):
        now += 5
        last = pauses.lease_s(30.0)
    assert last == 30.0


def test_a_sensor_that_was_off_for_a_while_does_not_count_as_late() -> None:
    now = 0.0
    pauses = TickPauses(clock=lambda: now)
    pauses.lease_s(30.0)
    now = 3600.0
    assert pauses.lease_s(30.0) == 30.0
