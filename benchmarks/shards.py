"""Shards: the same changes of two tables through one stream, and through two.

Two shards run in one process, or each in a process of its own. A measurement begins when the last
of the streams does, and ends when everything is durable; it counts the rows that came in between.
Two slots next to one are read by Postgres' own tool, too, and thrown away.

A destination in Postgres is a server of its own, as it is for most, since its WAL would be decoded
along with the source's. What each side takes of the processors is measured, because it is what
bounds the ratios where the machine has few of them: every slot is decoded as a whole.
"""

from __future__ import annotations

import json
import resource
import subprocess
import time
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.delay import delayed
from benchmarks.harness import PUBLICATION, BenchmarkFailed, Contest, Harness, Measurement
from benchmarks.processors import watched
from benchmarks.streams import ORDER_ROWS, ORDERS
from etl_dagster.demo.server import EmbeddedPostgres

_TABLES = ("orders", "others")
_TIMEOUT_S = 900.0
#: Of a destination far away: how long anything takes to get there, and rows for each batch. With
#: larger batches there are fewer waits, whatever the number of streams.
_ONE_WAY_S, _ROWS_FAR = 0.020, 5_000
#: By contender, the shards of each of its processes; None stands for all in one.
_KINDS: dict[str, list[str | None]] = {
    "one_stream": [None],
    "one_process": [None],
    "two_processes": ["first", "others"],
}


def reading(harness: Harness) -> Contest:
    """One slot with both tables next to two that have one of them each, without a pipeline."""
    with ExitStack() as made:
        database, rows = _prepared(harness, "shards_read", made, 600_000)
        publications = [PUBLICATION, *(f"{table}_pub" for table in _TABLES)]
        for publication in publications:
            _make_slot(harness, database, publication)
        _change(harness, database, rows)
        end_lsn = harness.insert_lsn(database)
        result = Contest(f"{2 * rows:,} rows of two tables, read by pg_recvlogical")
        for _ in range(harness.rounds):
            for name, read in (("one_slot", publications[:1]), ("two_slots", publications[1:])):
                found = _read(harness, database, read, end_lsn, 2 * rows)
                result.measured.setdefault(name, []).append(found)
    return result


def contest(harness: Harness, destination: str) -> Contest:
    """Rows of six columns inserted into both tables by turns; the baseline is one stream.

    Args:
        destination: ``discard``, where only reading and decoding is left; ``postgres``, on the
            same machine; or ``far``, the same with latency in between.
    """
    is_far = destination == "far"
    with ExitStack() as made:
        name = f"shards_{destination}"
        database, rows = _prepared(harness, name, made, 100_000 if is_far else 600_000)
        written: dict[str, EmbeddedPostgres] = {}
        if destination != "discard":
            written["destination"] = made.enter_context(harness.another_server(name))
        title = f"{2 * rows:,} rows of two tables, to {destination}: one stream, two shards"
        result = Contest(f"{title}, {2000 * _ONE_WAY_S:g} ms there and back" if is_far else title)
        tasks: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for number in range(harness.rounds):
            for kind in _KINDS:
                dsn = _place(written, f"{kind}_{number}")
                if is_far:
                    dsn = made.enter_context(delayed(dsn, _ONE_WAY_S))
                tasks[kind, number] = _tasks(harness, name, destination, kind, number, dsn)
                _run(harness, tasks[kind, number], written)
        _change(harness, database, rows)
        for number in range(harness.rounds):
            for kind in _KINDS:
                found, in_all = _run(harness, tasks[kind, number], written)
                if in_all != 2 * rows:
                    raise BenchmarkFailed(f"{in_all} of {2 * rows} changes came")
                label = kind if kind == "one_stream" else f"{kind}_to_{destination}"
                result.measured.setdefault(label, []).append(found)
    return result


def _place(written: dict[str, EmbeddedPostgres], name: str) -> str:
    """The DSN of a new database; empty where nothing is written."""
    for server in written.values():
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return server.dsn(name)
    return ""


def _prepared(harness: Harness, name: str, made: ExitStack, rows: int) -> tuple[str, int]:
    """A database with both tables, empty, and the publications; and how many rows each gets."""
    publications = [f"create publication {PUBLICATION} for table {', '.join(_TABLES)}"]
    publications += [f"create publication {table}_pub for table {table}" for table in _TABLES]
    others = ORDERS.replace("orders", "others")
    database = made.enter_context(harness.database(name, ORDERS, others, *publications))
    return database, harness.scaled(rows)


def _change(harness: Harness, database: str, rows: int) -> None:
    steps = 100
    with harness.connect(database) as connection:
        for step in range(steps):
            first, last = rows * step // steps + 1, rows * (step + 1) // steps
            for table in _TABLES:
                statement = ORDER_ROWS.format(first=first, last=last)
                connection.execute(statement.replace("into orders", f"into {table}").encode())
        connection.execute("checkpoint")


# -- pipelines -------------------------------------------------------------------------------------


def _tasks(
    harness: Harness, name: str, destination: str, kind: str, number: int, dsn: str
) -> list[dict[str, Any]]:
    """What each process of a contender does."""
    config = harness.config(name, f"{kind}_{number}")
    if destination != "discard":
        config["destination"] = {"type": "postgres", "dsn": dsn}
    if destination == "far":
        config["batch"] = {"max_rows": _ROWS_FAR}
    if kind != "one_stream":
        config["source"]["publication"] = f"{_TABLES[0]}_pub"
        config["shards"] = {"others": {"publication": f"{_TABLES[1]}_pub"}}
    return [
        {
            "kind": "catch_up_shards",
            "config": config,
            "destination": destination,
            "shard": config["pipeline"] if shard == "first" else shard,
        }
        for shard in _KINDS[kind]
    ]


def _run(
    harness: Harness, tasks: list[dict[str, Any]], written: dict[str, EmbeddedPostgres]
) -> tuple[Measurement, int]:
    """Run the processes of a contender until all have caught up; also how many changes came."""
    with watched(harness.server, **written) as spent, ExitStack() as running:
        workers = [running.enter_context(harness.worker(task)) for task in tasks]
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise BenchmarkFailed("a worker did not come up")
        # Each starts once its stdin ends.
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.stdin = None
        answers = [worker.communicate(timeout=_TIMEOUT_S)[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise BenchmarkFailed("a worker failed")
    found = [json.loads(answer.splitlines()[-1]) for answer in answers]
    began, ended = max(one["began"] for one in found), max(one["ended"] for one in found)
    before = [_look_at(began, one["looks"]) for one in found]
    after = [one["looks"][-1] for one in found]
    in_all = sum(rows for _, rows, _ in after)
    measured = Measurement(
        rows=max(in_all - sum(rows for _, rows, _ in before), 1),
        seconds=max(ended - began, 1e-9),
        cpu_s=sum(cpu_s for _, _, cpu_s in after) - sum(cpu_s for _, _, cpu_s in before),
        peak_rss_mb=sum(one["peak_rss_mb"] for one in found),
        others_cpu_s=spent.between(began, ended),
    )
    return measured, in_all


def _look_at(moment: float, looks: list[tuple[float, int, float]]) -> tuple[float, int, float]:
    """The last look up to a moment, or else the first of all."""
    return max((look for look in looks if look[0] <= moment), default=min(looks))


# -- reading only ----------------------------------------------------------------------------------


def _make_slot(harness: Harness, database: str, publication: str) -> None:
    with harness.connect(database) as connection:
        connection.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput')", [f"read_{publication}"]
        )


def _read(
    harness: Harness, database: str, publications: list[str], end_lsn: str, rows: int
) -> Measurement:
    """Read the slots at the same time, each up to the LSN, from copies of them."""
    copies = {publication: f"read_{publication}_copy" for publication in publications}
    with harness.connect(database) as connection:
        for publication, copy in copies.items():
            connection.execute(
                "select pg_copy_logical_replication_slot(%s, %s)", [f"read_{publication}", copy]
            )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with watched(harness.server) as spent:
        started = time.monotonic()
        readers = [
            subprocess.Popen(harness.recvlogical_command(database, copy, end_lsn, publication))
            for publication, copy in copies.items()
        ]
        codes = [reader.wait(_TIMEOUT_S) for reader in readers]
        if any(codes):
            raise BenchmarkFailed("pg_recvlogical failed")
        ended = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with harness.connect(database) as connection:
        for copy in copies.values():
            connection.execute("select pg_drop_replication_slot(%s)", [copy])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = spent.between(started, ended)
    return Measurement(rows, ended - started, cpu_s, others_cpu_s=others)
