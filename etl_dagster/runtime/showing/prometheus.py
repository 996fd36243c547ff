"""Metrics for Prometheus: answered over HTTP whenever it asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from etl_dagster.errors import ConfigError
from etl_dagster.runtime.showing.events import (
    BatchWritten,
    Event,
    StatusTaken,
    StreamRetried,
    WriteRetried,
)
from etl_dagster.runtime.showing.measures import (
    MEASURES,
    PREFIX,
    RETRIES,
    WRITE_BUCKETS_S,
    WRITE_SECONDS,
    WRITTEN_BYTES,
    samples,
)
from etl_dagster.runtime.showing.status import PipelineStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_COMMON = ("pipeline", "destination")


class PrometheusExporter(Collector):
    """Keeps the newest status of each pipeline, and counts what happens in between.

    Source: https://prometheus.io/docs/instrumenting/writing_exporters/ ("Collectors").
    """

    def __init__(self, *, tables: int) -> None:
        self._tables = tables
        self._statuses: dict[str, PipelineStatus] = {}
        self.registry = CollectorRegistry()
        self._write = Histogram(
            f"{PREFIX}_{WRITE_SECONDS.name}",
            "Time until a batch is durable at the destination.",
            ("pipeline",),
            buckets=WRITE_BUCKETS_S,
            registry=self.registry,
        )
        self._bytes = Counter(
            f"{PREFIX}_{WRITTEN_BYTES.name}",
            WRITTEN_BYTES.help,
            ("pipeline",),
            registry=self.registry,
        )
        self._retries = Counter(
            f"{PREFIX}_{RETRIES.name}",
            RETRIES.help,
            ("pipeline", *RETRIES.labels),
            registry=self.registry,
        )
        self.registry.register(self)

    def observe(self, event: Event) -> None:
        match event:
            case StatusTaken(status):
                self._statuses[status.pipeline] = status
            case BatchWritten(pipeline, _, row_bytes, write_s):
                self._write.labels(pipeline).observe(write_s)
                self._bytes.labels(pipeline).inc(row_bytes)
            case WriteRetried(pipeline=pipeline, error=error):
                self._retries.labels(pipeline, "write", error).inc()
            case StreamRetried(pipeline, error):
                self._retries.labels(pipeline, "stream", error).inc()

    def describe(self) -> Iterator[Metric]:
        """The names alone; asked when it is registered."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The newest numbers; called by the thread that answers."""
        families = self._families()
        for status in list(self._statuses.values()):
            for sample in samples(status, tables=self._tables):
                family = families[sample.measure.name]
                names = (*_COMMON, *sample.measure.labels)
                family.add_metric([sample.labels[name] for name in names], sample.value)
        yield from families.values()

    def _families(self) -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
        made: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for measure in MEASURES:
            family = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
            made[measure.name] = family(
                f"{PREFIX}_{measure.name}", measure.help, labels=(*_COMMON, *measure.labels)
            )
        return made


class Endpoint:
    """``/metrics`` on an address, until it is closed.

    Raises:
        ConfigError: the address can't be had.
    """

    def __init__(self, exporter: PrometheusExporter, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(
                port, addr=host, registry=exporter.registry
            )
        except OSError as error:
            raise ConfigError(
                [f"metrics.listen: {host}:{port} can't be had: {error.strerror or error}"],
                origin="the configuration",
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
