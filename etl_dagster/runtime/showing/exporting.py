"""The exporters that the configuration asks for, while a pipeline runs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Protocol

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.runtime.showing.observer import Observer, Observers

_log = logging.getLogger(__name__)

#: How often an address is tried that another process has.
_AGAIN_S = 5.0


class _Closes(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def exporting(config: PipelineConfig, *, waits_for_address: bool = False) -> Iterator[Observer]:
    """What is to be told of the pipeline's events, while the block runs.

    Args:
        waits_for_address: where another process has the address, continue, and take it once it is
            free: of two replicators, one stands by.

    Raises:
        ConfigError: a package is missing, or the address can't be had.
    """
    settings = config.metrics
    tables = settings.max_tables
    observers: list[Observer] = []
    with contextlib.ExitStack() as stack:
        if settings.listen is not None:
            module = _module("prometheus", "prometheus-client")
            exporter = module.PrometheusExporter(tables=tables)
            listen = partial(module.Endpoint, exporter, *settings.address)
            stack.enter_context(
                _taking_turns(listen) if waits_for_address else contextlib.closing(listen())
            )
            observers.append(exporter)
        if settings.opentelemetry:
            _module("opentelemetry", "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http")
            observers.append(stack.enter_context(_opentelemetry(tables)))
        yield Observers(observers)


@contextlib.contextmanager
def _taking_turns(listen: Callable[[], _Closes]) -> Iterator[None]:
    """Listen as soon as the address is free, on a thread that waits for that."""
    stop = threading.Event()

    def wait() -> None:
        is_said = False
        while not stop.is_set():
            try:
                with contextlib.closing(listen()):
                    stop.wait()
            except ConfigError as error:
                if not is_said:
                    _log.warning("%s; trying again until it is free", error.mistakes[0])
                is_said = True
                stop.wait(_AGAIN_S)

    thread = threading.Thread(target=wait, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _opentelemetry(tables: int) -> Iterator[Observer]:
    """Exports as OTEL_EXPORTER_OTLP_ENDPOINT and its like say; the last numbers at the end."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    from etl_dagster.runtime.showing.opentelemetry import OpenTelemetryExporter

    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    try:
        yield OpenTelemetryExporter(provider, tables=tables)
    finally:
        provider.shutdown()


def _module(name: str, packages: str) -> ModuleType:
    try:
        return importlib.import_module(f"etl_dagster.runtime.showing.{name}")
    except ImportError as error:
        raise ConfigError(
            [
                f"metrics: {name} needs packages that are not installed: "
                f'pip install "etl-dagster[{name}]" ({packages})'
            ],
            origin="the configuration",
        ) from error
