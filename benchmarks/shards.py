"""Shards: the same changes of two tables through one stream, and through two in two processes.

Measured is the second run of each, from when it begins to stream until everything is durable; of
two processes, the one that takes longer.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Contest, Harness, Measurement
from benchmarks.streams import ORDER_ROWS, ORDERS

_TABLES = ("orders", "others")
_TIMEOUT_S = 900.0


def contest(harness: Harness, destination: str) -> Contest:
    """Rows of six columns inserted into both tables by turns; the baseline is one stream.

    Args:
        destination: ``discard``, where only reading and decoding is left, or ``postgres``.
    """
    rows = harness.scaled(600_000)
    name = f"shards_{destination}"
    result = Contest(f"{2 * rows:,} rows of two tables, to {destination}: two processes and one")
    publications = [f"create publication {PUBLICATION} for table {', '.join(_TABLES)}"]
    publications += [f"create publication {table}_pub for table {table}" for table in _TABLES]
    with ExitStack() as made:
        database = made.enter_context(
            harness.database(name, ORDERS, ORDERS.replace("orders", "others"), *publications)
        )
        for number in range(harness.rounds):
            for kind in ("one", "two"):
                made.enter_context(harness.database(f"{name}_{kind}_{number}"))
                _run(harness, name, destination, kind, number)
        steps = 100
        with harness.connect(database) as connection:
            for step in range(steps):
                first, last = rows * step // steps + 1, rows * (step + 1) // steps
                for table in _TABLES:
                    statement = ORDER_ROWS.format(first=first, last=last)
                    connection.execute(statement.replace("into orders", f"into {table}").encode())
            connection.execute("checkpoint")
        for number in range(harness.rounds):
            one = _run(harness, name, destination, "one", number)
            result.measured.setdefault("one_stream", []).append(_together(one))
            two = _run(harness, name, destination, "two", number)
            found = _together(two)
            if found.rows != 2 * rows:
                raise BenchmarkFailed(f"{found.rows} of {2 * rows} changes came")
            result.measured.setdefault(f"two_shards_to_{destination}", []).append(found)
    return result


def _run(
    harness: Harness, name: str, destination: str, kind: str, number: int
) -> list[Measurement]:
    """Run the pipeline with one stream, or both shards at a time, until they have caught up."""
    place = f"{name}_{kind}_{number}"
    config = harness.config(name, f"{kind}_{number}")
    if destination == "postgres":
        config["destination"] = {"type": "postgres", "dsn": harness.server.dsn(place)}
    shards: list[str | None] = [None]
    if kind == "two":
        config["source"]["publication"] = f"{_TABLES[0]}_pub"
        config["shards"] = {"others": {"publication": f"{_TABLES[1]}_pub"}}
        shards = [config["pipeline"], "others"]
    tasks = [
        {"kind": "catch_up", "config": config, "destination": destination, "shard": shard}
        for shard in shards
    ]
    with ExitStack() as running:
        workers = [running.enter_context(harness.worker(task)) for task in tasks]
        answers = [worker.communicate(timeout=_TIMEOUT_S)[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise BenchmarkFailed(f"a worker of {place} failed")
    return [Measurement(**json.loads(answer.splitlines()[-1])) for answer in answers]


def _together(measured: list[Measurement]) -> Measurement:
    return Measurement(
        rows=sum(each.rows for each in measured),
        seconds=max(each.seconds for each in measured),
        cpu_s=sum(each.cpu_s for each in measured),
        peak_rss_mb=sum(each.peak_rss_mb for each in measured),
    )
