"""How long a pool tries to connect, with the time passed in."""

from __future__ import annotations

import psycopg
import pytest

from etl_dagster.errors import EtlError, StoreError
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.pool import Pool


class Away:
    """A server that refuses, and the time that passes in pauses alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tries = 0
        self.reported: list[EtlError] = []

    def connect(self) -> Connection:
        self.tries += 1
        raise psycopg.OperationalError("connection failed: Connection refused")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pool(self, *, is_patient: bool) -> Pool:
        return Pool(
            self.connect,
            lambda error: StoreError(str(error)),
            kept=1,
            give_up_after_s=20,
            is_patient=lambda: is_patient,
            on_away=self.reported.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


def test_a_wrong_host_is_reported_at_once() -> None:
    away = Away()
    with pytest.raises(StoreError, match="refused"):
        away.pool(is_patient=False).run(lambda connection: None)
    assert (away.tries, away.now, away.reported) == (1, 0.0, [])


def test_a_patient_pool_waits_for_the_first_connection_too_and_says_so_once() -> None:
    away = Away()
    with pytest.raises(StoreError, match="refused"):
        away.pool(is_patient=True).run(lambda connection: None)
    assert 17 < away.now <= 20
    assert away.tries > 10
    assert len(away.reported) == 1
