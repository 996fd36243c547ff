"""Keeps the flights database busy, as the program of an airline would; a process of its own.

``python -m etl_dagster.demo.workload`` reads one line of JSON from its standard input, ``{"dsn":
..., "rate": ...}``, so that the password is on no command line and in no environment. It ends when
its standard input is closed, or by SIGTERM.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import psycopg

from etl_dagster.backoff import Backoff

logger = logging.getLogger(__name__)

_Connection = psycopg.Connection[tuple[Any, ...]]
_T = TypeVar("_T")

#: How many changes a transaction makes, and how often one of that size is made: mostly a few,
#: now and then a few hundred, as when a schedule is published.
_SIZES = ((1, 30), (3, 30), (10, 25), (40, 10), (150, 4), (600, 1))
#: What a transaction does, and how often.
_KINDS = (("schedule", 30), ("progress", 55), ("cancel", 8), ("remove", 3), ("weather", 4))
#: Flights this close to the newest are the ones that still change most of the time.
_RECENT = 20_000
_MAX_BACKOFF_S = 10.0

_SCHEDULE = """
INSERT INTO flights (year, month, day, sched_dep_time, sched_arr_time, carrier, flight, tailnum,
                     origin, dest, distance, hour, minute, time_hour)
SELECT extract(year FROM local_time), extract(month FROM local_time), extract(day FROM local_time),
       sched_dep_time, sched_arr_time, carrier, flight, tailnum, origin, dest, distance, hour,
       minute,
       date_trunc('day', local_time) AT TIME ZONE 'America/New_York' + make_interval(hours => hour)
FROM flights, LATERAL (SELECT now() AT TIME ZONE 'America/New_York' AS local_time) AS clock
WHERE flight_id = ANY(%(ids)s)
"""

_PROGRESS = """
UPDATE flights SET
    status = CASE status WHEN 'scheduled' THEN 'departed' WHEN 'departed' THEN 'landed'
                         ELSE status END::flight_status,
    dep_delay = coalesce(dep_delay, delay),
    dep_time = coalesce(dep_time, (sched_dep_time / 100 * 60 + sched_dep_time %% 100 + delay + 1440)
                                  %% 1440 / 60 * 100
                                + (sched_dep_time %% 100 + delay + 1440) %% 60),
    arr_time = CASE WHEN status <> 'scheduled' THEN coalesce(arr_time, sched_arr_time) END,
    arr_delay = CASE WHEN status <> 'scheduled' THEN coalesce(arr_delay, 0) + delay END,
    air_time = CASE WHEN status <> 'scheduled' THEN coalesce(air_time, distance / 8 + 20) END,
    updated_at = now()
FROM unnest(%(ids)s::bigint[], %(delays)s::int[]) AS report (id, delay)
WHERE flight_id = id AND status <> 'cancelled'
"""

_CANCEL = """
UPDATE flights SET status = 'cancelled', dep_time = NULL, dep_delay = NULL, arr_time = NULL,
    arr_delay = NULL, air_time = NULL, updated_at = now()
WHERE flight_id = ANY(%(ids)s) AND status <> 'cancelled'
"""

_REMOVE = "DELETE FROM flights WHERE flight_id = ANY(%(ids)s)"

_WEATHER = """
INSERT INTO weather (origin, year, month, day, hour, temp, humid, wind_dir, wind_speed, precip,
                     visib, time_hour)
SELECT origin, extract(year FROM local_time), extract(month FROM local_time),
       extract(day FROM local_time), extract(hour FROM local_time), 40 + temp / 100.0, 60,
       temp %% 360, temp / 250.0, 0, 10, date_trunc('hour', now())
FROM unnest(ARRAY['EWR', 'JFK', 'LGA'], %(delays)s::int[]) AS report (origin, temp),
     LATERAL (SELECT now() AT TIME ZONE 'America/New_York' AS local_time) AS clock
WHERE origin IS NOT NULL AND temp IS NOT NULL
ON CONFLICT (origin, time_hour) DO UPDATE
SET temp = excluded.temp, wind_dir = excluded.wind_dir, wind_speed = excluded.wind_speed
"""


class Workload:
    """Makes one transaction after the other, `rate` row changes a second on average."""

    def __init__(self, dsn: str, rate: float, *, seed: int | None = None) -> None:
        self._dsn = dsn
        self._rate = rate
        self._random = random.Random(seed)
        #: Row changes committed so far.
        self.changes = 0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a lost connection is made again, with growing pauses."""
        pauses = Backoff(0.5, _MAX_BACKOFF_S)
        while not stop.is_set():
            before = self.changes
            try:
                with psycopg.connect(self._dsn, application_name="flights_workload") as connection:
                    self._work(connection, stop)
            except psycopg.OperationalError as error:
                if self.changes > before:
                    pauses.reset()
                pause_s = pauses.next_delay_s()
                logger.warning("reconnecting in %.1f s: %s", pause_s, str(error).strip())
                stop.wait(pause_s)

    def _work(self, connection: _Connection, stop: threading.Event) -> None:
        due = time.monotonic()
        while not stop.is_set():
            made = self.transaction(connection)
            # Behind by more than a second means that the server can't do more: don't pile up.
            due = max(due + made / self._rate, time.monotonic() - 1.0)
            stop.wait(max(0.0, due - time.monotonic()))

    def transaction(self, connection: _Connection) -> int:
        """Commit one transaction and return the number of rows it changed, at least 1."""
        size = self._pick(_SIZES)
        with connection.transaction():
            row = connection.execute("SELECT max(flight_id) FROM flights").fetchone()
            newest = row[0] if row and row[0] else 1
            made = 0
            while made < size:
                cursor = self._execute(connection, self._pick(_KINDS), newest, size - made)
                made += max(cursor.rowcount, 1)
        self.changes += made
        return made

    def _execute(
        self, connection: _Connection, kind: str, newest: int, count: int
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        ids = [self._flight(newest) for _ in range(count)]
        delays = [int(self._random.gauss(8, 20)) for _ in ids]
        match kind:
            case "schedule":
                return connection.execute(_SCHEDULE, {"ids": ids})
            case "progress":
                return connection.execute(_PROGRESS, {"ids": ids, "delays": delays})
            case "cancel":
                return connection.execute(_CANCEL, {"ids": ids})
            case "remove":
                return connection.execute(_REMOVE, {"ids": ids[: 1 + count // 10]})
            case _:
                readings = [self._random.randrange(5_000) for _ in range(3)]
                return connection.execute(_WEATHER, {"delays": readings})

    def _flight(self, newest: int) -> int:
        if self._random.random() < 0.8:
            return self._random.randint(max(1, newest - _RECENT), newest)
        return self._random.randint(1, newest)

    def _pick(self, weighted: Sequence[tuple[_T, int]]) -> _T:
        values, weights = zip(*weighted, strict=True)
        picked: _T = self._random.choices(values, weights)[0]
        return picked


def main() -> None:
    """Read the order, then work until told to stop."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    order = json.loads(sys.stdin.readline())

    def watch() -> None:
        while sys.stdin.readline():
            pass
        stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
    Workload(order["dsn"], order["rate"]).run(stop)


if __name__ == "__main__":
    main()
