"""Metrics for OpenTelemetry: handed to the exporter that its own environment variables name."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from etl_dagster import __version__
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
    Measure,
    samples,
)
from etl_dagster.runtime.showing.status import PipelineStatus


class OpenTelemetryExporter:
    """Instruments of the same names and labels as for Prometheus, with dots for the prefix.

    Args:
        provider: where the instruments are made.
        tables: how many tables have metrics of their own.
    """

    def __init__(self, provider: MeterProvider, *, tables: int) -> None:
        self._tables = tables
        self._statuses: dict[str, PipelineStatus] = {}
        meter = provider.get_meter(PREFIX, __version__)
        for measure in MEASURES:
            create = (
                meter.create_observable_counter
                if measure.kind == "counter"
                else meter.create_observable_gauge
            )
            create(_name(measure), [self._reader(measure)], description=measure.help)
        self._write = meter.create_histogram(
            _name(WRITE_SECONDS),
            unit="s",
            description="Time until a batch is durable at the destination.",
            explicit_bucket_boundaries_advisory=list(WRITE_BUCKETS_S),
        )
        self._bytes = meter.create_counter(
            _name(WRITTEN_BYTES), unit="By", description=WRITTEN_BYTES.help
        )
        self._retries = meter.create_counter(_name(RETRIES), description=RETRIES.help)

    def observe(self, event: Event) -> None:
        match event:
            case StatusTaken(status):
                self._statuses[status.pipeline] = status
            case BatchWritten(pipeline, _, row_bytes, write_s):
                self._write.record(write_s, {"pipeline": pipeline})
                self._bytes.add(row_bytes, {"pipeline": pipeline})
            case WriteRetried(pipeline=pipeline, error=error):
                self._retries.add(1, {"pipeline": pipeline, "kind": "write", "error": error})
            case StreamRetried(pipeline, error):
                self._retries.add(1, {"pipeline": pipeline, "kind": "stream", "error": error})

    def _reader(self, measure: Measure):  # type: ignore[no-untyped-def]
        def read(options: CallbackOptions) -> Iterable[Observation]:
            for status in list(self._statuses.values()):
                for sample in samples(status, tables=self._tables):
                    if sample.measure is measure:
                        yield Observation(sample.value, dict(sample.labels))

        return read


def _name(measure: Measure) -> str:
    return f"{PREFIX}.{measure.name.removesuffix('_total')}"
