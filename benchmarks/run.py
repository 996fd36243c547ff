"""`make bench`: what users have, measured next to Postgres' own tools on the same machine.

A ratio is the baseline's time divided by ours, so 1.0 is as fast as Postgres' own tool that throws
the rows away. Contenders take turns, and each ratio is one of medians. Every figure's name and
value go into benchmarks/latest.json; a run of some parts replaces only what it measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import (
    compare,
    in_progress,
    latency,
    memory,
    postgres,
    shards,
    singer,
    streams,
    tables,
)
from benchmarks.harness import SETTINGS, BenchmarkFailed, Contest, Harness, Measurement
from etl_dagster.demo.server import EmbeddedPostgres, find_servers

LATEST = Path(__file__).parent / "latest.json"


@dataclass(frozen=True)
class Part:
    """Something that is measured by itself."""

    name: str
    title: str
    run: Callable[[Harness, Console], dict[str, float]]


def _small(harness: Harness, console: Console) -> dict[str, float]:
    contest = streams.contest(harness, streams.small_inserts(harness))
    ours = _median(contest.measured["stream_to_duckdb"])
    cpu_s = ours.cpu_s / ours.rows * 1e6
    return _ratios(contest, console) | {"cpu_s_per_1m_inserts": cpu_s}


def _stream(
    case: Callable[[Harness], streams.Case],
) -> Callable[[Harness, Console], dict[str, float]]:
    def run(harness: Harness, console: Console) -> dict[str, float]:
        return _ratios(streams.contest(harness, case(harness)), console)

    return run


def _arrays(harness: Harness, console: Console) -> dict[str, float]:
    contest = streams.contest(harness, streams.arrays(harness))
    ours = _median(contest.measured["arrays_to_arrow"])
    return _ratios(contest, console) | {"arrays_rows_per_cpu_s": ours.rows / ours.cpu_s}


def _singer(harness: Harness, console: Console) -> dict[str, float]:
    contest = singer.contest(harness)
    ours = _median(contest.measured["singer_records"])
    return _ratios(contest, console) | {"singer_records_per_cpu_s": ours.rows / ours.cpu_s}


def _copies(harness: Harness, console: Console) -> dict[str, float]:
    return _ratios(streams.copies(harness), console)


def _postgres(harness: Harness, console: Console) -> dict[str, float]:
    found = _ratios(postgres.backlog(harness), console)
    return found | _ratios(postgres.initial_copy(harness), console)


def _shards(harness: Harness, console: Console) -> dict[str, float]:
    contest = shards.reading(harness)
    found = _ratios(contest, console)
    _processors(contest, console)
    for destination in ("discard", "postgres", "far"):
        contest = shards.contest(harness, destination)
        found |= _ratios(contest, console)
        _processors(contest, console)
    return found


def _memory(harness: Harness, console: Console) -> dict[str, float]:
    found = memory.peak(harness)
    return {
        "memory_budget_mb": found.budget_mb,
        "rss_mb_of_texts": found.peak_rss_mb,
        "memory_of_texts_s": found.seconds,
    }


def _compare(harness: Harness, console: Console) -> dict[str, float]:
    rows = harness.scaled(10_000_000)
    few = compare.compared(harness, rows // 5)
    found = compare.compared(harness, rows, rounds=harness.rounds)
    postgres = compare.compared(harness, rows, "postgres", rounds=harness.rounds)
    return {
        "compare_to_copy": found.compare_s / found.copy_s,
        "compare_to_copy_cpu": found.compare_cpu_s / found.copy_cpu_s,
        "compare_to_copy_postgres": postgres.compare_s / postgres.copy_s,
        "compare_to_copy_postgres_cpu": postgres.compare_cpu_s / postgres.copy_cpu_s,
        "rss_mb_compare_2m_rows": few.peak_rss_mb,
        "rss_mb_compare_10m_rows": found.peak_rss_mb,
    }


def _large(harness: Harness, console: Console) -> dict[str, float]:
    results: dict[str, float] = {}
    for rows, name in ((1_000_000, "1m_row"), (5_000_000, "5m_row")):
        case = streams.one_transaction(harness, rows, f"one_transaction_{name}")
        contest = streams.contest(harness, case)
        results |= _ratios(contest, console)
        [ours] = contest.measured[f"one_transaction_{name}_to_duckdb"]
        results[f"rss_mb_{name}_transaction"] = ours.peak_rss_mb
    return results


def _in_progress(harness: Harness, console: Console) -> dict[str, float]:
    rows = harness.scaled(5_000_000)
    off = in_progress.arrival(harness, rows, "off")
    auto = in_progress.arrival(harness, rows, "auto")
    return {
        "large_transaction_durable_s_streaming_off": off.durable_after_s,
        "large_transaction_durable_s": auto.durable_after_s,
        "large_transaction_of_streaming_off": auto.durable_after_s / off.durable_after_s,
        "rss_mb_large_transaction_in_progress": auto.peak_rss_mb,
    }


def _texts(harness: Harness, console: Console) -> dict[str, float]:
    contest = streams.contest(harness, streams.long_texts(harness))
    [ours] = contest.measured["texts_to_duckdb"]
    return _ratios(contest, console) | {"rss_mb_2gb_text_transaction": ours.peak_rss_mb}


def _tables(harness: Harness, console: Console) -> dict[str, float]:
    count = harness.scaled(1000, at_least=10)
    once = tables.cpu_s_per_table(harness, count)
    twice = tables.cpu_s_per_table(harness, 2 * count)
    return {"cpu_s_per_table_1000": once, "cpu_s_per_table_doubling": twice / once}


def _idle(harness: Harness, console: Console) -> dict[str, float]:
    return tables.idle(harness, harness.scaled(1000, at_least=10), max(30 * harness.scale, 5))


def _latency(harness: Harness, console: Console) -> dict[str, float]:
    growing_s, short_s = max(300 * harness.scale, 5), max(20 * harness.scale, 5)
    small = latency.latencies(
        harness, harness.scaled(100_000), seconds={100: short_s, 1000: growing_s}
    )
    large = latency.latencies(
        harness, harness.scaled(10_000_000), seconds={100: short_s, 1000: short_s}
    )
    results = {"file_growth_mb_per_minute": small[1000].file_growth_mb / growing_s * 60}
    for suffix, found in (
        ("", small[1000]),
        ("_fill_100", small[100]),
        ("_10m_rows", large[1000]),
        ("_10m_rows_fill_100", large[100]),
    ):
        for percent, ms in found.durable_ms.items():
            results[f"durable_ms_p{percent}{suffix}"] = ms
        for percent, ms in found.readable_ms.items():
            results[f"readable_ms_p{percent}{suffix}"] = ms
    return results


PARTS = (
    Part("small", "streaming small inserts, to Arrow and to DuckDB", _small),
    Part("copy", "copying a table", _copies),
    Part("compare", "comparing a table with its source", _compare),
    Part("tpcb", "streaming pgbench's TPC-B", _stream(streams.tpcb)),
    Part("toast", "updates next to unchanged TOAST", _stream(streams.toast_updates)),
    Part("deletes", "deletes", _stream(streams.deletes)),
    Part("wide", "inserts of sixty columns", _stream(streams.wide_rows)),
    Part("arrays", "inserts of arrays, to Arrow and to DuckDB", _arrays),
    Part("singer", "changes as the records of a Singer target", _singer),
    Part("texts", "2 GB of text in one transaction", _texts),
    Part("postgres", "to another Postgres, next to its own subscriptions", _postgres),
    Part("shards", "two shards in one process and in two, next to one stream", _shards),
    Part("large", "1,000,000 and 5,000,000 rows in one transaction", _large),
    Part("in_progress", "5,000,000 rows in one transaction, read in progress", _in_progress),
    Part("memory", "long texts: copies, changes and a large transaction in one budget", _memory),
    Part("tables", "1,000 and 2,000 tables from empty to ready", _tables),
    Part("idle", "CPU and WAL while nothing happens", _idle),
    Part("latency", "latency, and how the file grows", _latency),
)


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    parts = [part for part in PARTS if not arguments.parts or part.name in arguments.parts]
    folder = Path(tempfile.mkdtemp(prefix="etl_dagster_bench_"))
    results: dict[str, float] = {}
    failed = False
    try:
        binaries = find_servers()[0]
        with EmbeddedPostgres(
            folder / "server", binaries, settings=SETTINGS, durable=False
        ) as server:
            harness = Harness(server, binaries, folder, arguments.rounds, arguments.scale)
            for part in parts:
                started = time.monotonic()
                try:
                    with console.status(f"{part.title} ..."):
                        measured = part.run(harness, console)
                except BenchmarkFailed as failure:
                    failed = True
                    console.print(f"[red]{part.name}: {failure}[/red]")
                    continue
                results |= {name: round(value, 3) for name, value in measured.items()}
                if not arguments.no_write:
                    _keep(results)
                console.print(_figures(part, measured, time.monotonic() - started))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run",
        description=__doc__,
        epilog="Parts: " + "; ".join(f"{part.name} ({part.title})" for part in PARTS),
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="measure only these: " + ", ".join(part.name for part in PARTS),
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply rows, tables and seconds (1)"
    )
    parser.add_argument("--json", action="store_true", help="also print the figures as JSON")
    parser.add_argument("--no-write", action="store_true", help="leave latest.json as it is")
    arguments = parser.parse_args()
    known = {part.name for part in PARTS}
    if unknown := [name for name in arguments.parts if name not in known]:
        parser.error(f"no such part: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    # What was measured at another scale is not what is reported.
    arguments.no_write = arguments.no_write or arguments.scale != 1
    return arguments


def _keep(results: Mapping[str, float]) -> None:
    known = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    LATEST.write_text(json.dumps(known | dict(results), indent=2) + "\n")


def _median(measured: list[Measurement]) -> Measurement:
    return sorted(measured, key=lambda one: one.seconds)[len(measured) // 2]


def _ratios(contest: Contest, console: Console) -> dict[str, float]:
    """Print the contest; returns the ratio of each contender to the first."""
    per_row = {
        name: statistics.median(one.seconds / one.rows for one in measured)
        for name, measured in contest.measured.items()
    }
    baseline, *contenders = contest.measured
    ratios = {name: per_row[baseline] / per_row[name] for name in contenders}
    table = Table(title=contest.title, title_justify="left")
    for heading in ("", "rows/s", "CPU s per 1M rows", "peak RSS MB", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, measured in contest.measured.items():
        middle = _median(measured)
        table.add_row(
            name,
            f"{middle.rows / middle.seconds:,.0f}",
            f"{middle.cpu_s / middle.rows * 1e6:.2f}",
            f"{middle.peak_rss_mb:.0f}" if middle.peak_rss_mb else "",
            f"{ratios[name]:.2f}" if name in ratios else "1",
        )
    console.print(table)
    return ratios


def _processors(contest: Contest, console: Console) -> None:
    """Print what took the processors' time, and how fast a contender can be on this machine.

    The bound is a ratio to the first contender: the machine's cores, each busy all of the time with
    what the contender's rows took.
    """
    count = os.cpu_count() or 1
    middles = {name: _median(measured) for name, measured in contest.measured.items()}
    baseline = next(iter(middles.values()))
    for name, one in middles.items():
        per_row = one.seconds * one.cores / one.rows
        bound = baseline.seconds / baseline.rows / (per_row / count)
        took = {"readers": one.cpu_s} | dict(one.others_cpu_s)
        each = ", ".join(f"{group} {cpu_s / one.rows * 1e6:.2f}" for group, cpu_s in took.items())
        console.print(
            f"{name}: {one.cores:.2f} of {count} cores busy, which bound the ratio by {bound:.2f}; "
            f"CPU s per 1M rows: {each}"
        )


def _figures(part: Part, measured: Mapping[str, float], seconds: float) -> str:
    figures = ", ".join(f"{name} {value:.3g}" for name, value in measured.items())
    return f"{part.name}: {figures} ({seconds:.0f} s)"


if __name__ == "__main__":
    main()
