"""What monitoring sees of a pipeline: the numbers of its status, under stable names."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.runtime.showing.events import (
    BatchWritten,
    Event,
    StatusTaken,
    StreamRetried,
    WriteRetried,
)
from etl_dagster.runtime.showing.exporting import exporting
from etl_dagster.runtime.showing.history import EVERY_S, History, read_history
from etl_dagster.runtime.showing.measures import MEASURES, PREFIX
from etl_dagster.runtime.showing.observer import Observers
from etl_dagster.runtime.showing.opentelemetry import OpenTelemetryExporter
from etl_dagster.runtime.showing.prometheus import Endpoint, PrometheusExporter
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.runtime.showing.trouble import Trouble

DOCS = Path(__file__).parents[2] / "docs"

ORDERS = TableStatus(
    1, "public.orders", "ready", "id", rows_inserted=7, rows_deleted=2, row_count=5
)
VISITS = TableStatus(2, "public.visits", "errored", "id", copy_chunks_total=0)
ITEMS = TableStatus(
    3,
    "public.items",
    "data_sync",
    "id",
    copy_chunks_total=4,
    copy_rows_done=50,
    copy_rows_estimated=200,
)
STATUS = PipelineStatus(
    "shop",
    "duckdb",
    "streaming",
    lag_bytes=4096,
    lag_seconds=1.5,
    latency_seconds=2.5,
    retained_wal_bytes=1 << 20,
    wal_warned_above_bytes=1 << 30,
    rows_total=9,
    batches=3,
    tables={table.name: table for table in (ORDERS, VISITS, ITEMS)},
    at=1_800_000_000.0,
)
EVENTS: tuple[Event, ...] = (
    StatusTaken(STATUS),
    BatchWritten("shop", 9, 1000, 0.2),
    BatchWritten("shop", 1, 24, 0.02),
    WriteRetried("shop", "DestinationUnreachable"),
    StreamRetried("shop", "SourceUnreachable"),
)
#: A few of the lines that Prometheus gets.
EXPECTED = {
    'etl_dagster_up{destination="duckdb",pipeline="shop"}': 1.0,
    'etl_dagster_lag_bytes{destination="duckdb",pipeline="shop"}': 4096.0,
    'etl_dagster_lag_seconds{destination="duckdb",pipeline="shop"}': 1.5,
    'etl_dagster_retained_wal_bytes{destination="duckdb",pipeline="shop"}': float(1 << 20),
    'etl_dagster_retained_wal_warning_bytes{destination="duckdb",pipeline="shop"}': float(1 << 30),
    'etl_dagster_latency_seconds{destination="duckdb",pipeline="shop"}': 2.5,
    'etl_dagster_rows_total{destination="duckdb",pipeline="shop"}': 9.0,
    'etl_dagster_tables{destination="duckdb",pipeline="shop",state="errored"}': 1.0,
    'etl_dagster_table_changes_total{destination="duckdb",operation="insert",pipeline="shop",'
    'table="public.orders"}': 7.0,
    'etl_dagster_table_errored{destination="duckdb",pipeline="shop",table="public.visits"}': 1.0,
    'etl_dagster_copy_rows{destination="duckdb",pipeline="shop",table="public.items"}': 50.0,
    'etl_dagster_write_seconds_count{pipeline="shop"}': 2.0,
    'etl_dagster_write_seconds_bucket{le="0.025",pipeline="shop"}': 1.0,
    'etl_dagster_written_bytes_total{pipeline="shop"}': 1024.0,
    'etl_dagster_retries_total{error="SourceUnreachable",kind="stream",pipeline="shop"}': 1.0,
}


def scraped(port: int) -> dict[str, float]:
    """The lines, with the labels in order."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        if (labels := re.search(r"\{(.*)\}", name)) is not None:
            ordered = ",".join(sorted(re.findall(r'\w+="[^"]*"', labels[1])))
            name = f"{name.partition('{')[0]}{{{ordered}}}"
        found[name] = float(value)
    return found


def test_prometheus_finds_the_newest_numbers() -> None:
    exporter = PrometheusExporter(tables=10)
    for event in EVENTS:
        exporter.observe(event)
    with closing(Endpoint(exporter, "127.0.0.1", 0)) as endpoint:
        found = scraped(endpoint.port)
    assert {name: found.get(name) for name in EXPECTED} == EXPECTED


def test_tables_beyond_the_limit_are_only_in_the_sums() -> None:
    exporter = PrometheusExporter(tables=1)
    exporter.observe(StatusTaken(STATUS))
    with closing(Endpoint(exporter, "127.0.0.1", 0)) as endpoint:
        found = scraped(endpoint.port)
    tables = {match[1] for name in found if (match := re.search(r'table="([^"]*)"', name))}
    assert tables == {"public.items"}
    assert found['etl_dagster_tables{destination="duckdb",pipeline="shop",state="errored"}'] == 1.0


def test_opentelemetry_has_the_same_numbers() -> None:
    reader = InMemoryMetricReader()
    exporter = OpenTelemetryExporter(MeterProvider([reader]), tables=10)
    for event in EVENTS:
        exporter.observe(event)
    data: Any = reader.get_metrics_data()
    [scope] = data.resource_metrics[0].scope_metrics
    points = {
        (metric.name, *sorted(point.attributes.items())): point
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    common = (("destination", "duckdb"), ("pipeline", "shop"))
    assert points["etl_dagster.lag_seconds", *common].value == 1.5
    assert points["etl_dagster.rows", *common].value == 9
    assert points["etl_dagster.write_seconds", ("pipeline", "shop")].count == 2
    names = {name for name, *_ in points}
    assert names >= {f"etl_dagster.{m.name.removesuffix('_total')}" for m in MEASURES}


def test_an_observer_that_fails_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def observe(self, event: Event) -> None:
            raise RuntimeError("secret")

    exporter = PrometheusExporter(tables=10)
    both = Observers([Broken(), exporter])
    for event in EVENTS:
        both.observe(event)
    assert len(caplog.messages) == 1
    assert "secret" not in caplog.text
    with closing(Endpoint(exporter, "127.0.0.1", 0)) as endpoint:
        assert scraped(endpoint.port)


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        raise AssertionError("nothing waits")


def test_a_refusal_is_shown_until_a_batch_is_written_or_none_is_left() -> None:
    clock, told = Hand(), list[Event]()

    class Listener:
        def observe(self, event: Event) -> None:
            told.append(event)

    trouble = Trouble(Listener(), clock, forgets_after_s=60)
    refused = WriteRetried("shop", "DestinationUnreachable", "nothing answers", "Start it.")
    written = BatchWritten("shop", 1, 1, 0.1)
    trouble.observe(refused)
    assert trouble.refusal == refused
    trouble.observe(written)
    assert trouble.refusal is None
    trouble.observe(refused)
    clock.time_s = 61
    assert trouble.refusal is None
    assert told == [refused, written, refused]


def test_the_history_keeps_the_maximum_between_its_samples() -> None:
    shown: list[Mapping[str, Any]] = []
    history = History(shown.append)
    for second, rate in ((0, 1.0), (1, 50_000.0), (2, 3.0), (EVERY_S, 2.0), (EVERY_S + 60, 7.0)):
        history.add(replace(STATUS, at=1000.0 + second, rows_per_second=rate))
    moments = read_history(shown[-1])
    assert [moment.rows_per_second for moment in moments] == [1.0, 50_000.0, 7.0]
    again = History(shown.append)
    again.recall(shown[-1])
    again.add(replace(STATUS, at=moments[-1].at + EVERY_S, rows_per_second=9.0))
    assert len(read_history(shown[-1])) == len(moments) + 1


def config(listen: str) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://localhost/shop", "publication": "p"},
            "destination": {"type": "duckdb", "path": "shop.duckdb"},
            "metrics": {"listen": listen},
        },
        {},
    )


def test_an_address_that_is_taken_is_refused_or_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused = pytest.raises(ConfigError, match=f"metrics.listen: {address} can't be had")
        with refused, exporting(config(address)):
            pass
        with exporting(config(address), waits_for_address=True) as observer:
            observer.observe(StatusTaken(STATUS))


@pytest.mark.parametrize("listen", ["9464", ":9464", "localhost:", "localhost:http", "h:70000"])
def test_an_address_has_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        config(listen)


def test_the_dashboard_queries_only_metrics_that_exist() -> None:
    exporter = PrometheusExporter(tables=10)
    for event in EVENTS:
        exporter.observe(event)
    with closing(Endpoint(exporter, "127.0.0.1", 0)) as endpoint:
        known = {name.partition("{")[0] for name in scraped(endpoint.port)}
    dashboard = json.loads((DOCS / "monitoring" / "grafana-dashboard.json").read_text("utf-8"))
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            asked |= set(re.findall(rf"\b{PREFIX}_\w+", target["expr"]))
    page = (DOCS / "guides" / "monitoring.md").read_text("utf-8")
    written = set(re.findall(rf"\b{PREFIX}_[a-z_]+", page)) - {"etl_dagster_project"}
    assert len(asked) > 8
    assert asked <= known
    assert {name for name in written if not name.endswith("_")} <= known
    assert {f"{PREFIX}_{m.name}" for m in MEASURES} <= written
