"""What a line of Meltano's log says."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_METRIC = re.compile(r"METRIC: (\{.*\})\s*$")
#: Source: meltano.core.singer.bookmark_writer and meltano.core.state_service.
_UNWRITTEN = re.compile(r"Failed to persist (incremental )?state")
_ERRORS_KEPT = 20
_LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}


@dataclass(frozen=True)
class Metric:
    """A point of a Singer metric, as taps and targets log it.

    Source: Singer specification, "Metrics"; singer_sdk.metrics adds the stream's status.
    """

    #: ``record_count``, ``sync_duration`` ...
    name: str
    value: float
    #: None where the metric isn't about one stream.
    stream: str | None
    status: str | None = None

    @classmethod
    def parse(cls, payload: Any) -> Metric | None:
        if not isinstance(payload, dict):
            return None
        tags = payload.get("tags")
        tags = tags if isinstance(tags, dict) else {}
        name, value = payload.get("metric"), payload.get("value")
        if not isinstance(name, str) or not isinstance(value, int | float):
            return None
        # singer-python calls it an endpoint.
        stream = tags.get("stream") or tags.get("endpoint")
        status = tags.get("status")
        return cls(
            name,
            float(value),
            stream if isinstance(stream, str) else None,
            status if isinstance(status, str) else None,
        )


@dataclass(frozen=True)
class LogLine:
    """One line, whatever its format was."""

    level: int
    text: str
    #: Which plugin wrote it; None for Meltano itself.
    plugin: str | None = None
    #: Whether the plugin is a loader, which counts the same records again.
    is_from_loader: bool = False
    metric: Metric | None = None
    #: How long the run took; only in the line that Meltano ends it with.
    duration_s: float | None = None


def parse_line(line: str) -> LogLine | None:
    """Read a line of the JSON log; a line in another format is text. None for an empty one."""
    line = line.rstrip()
    if not line:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "event" not in entry:
        return LogLine(logging.INFO, line, metric=_metric_in(line))
    event = str(entry["event"])
    plugin = entry.get("name") or entry.get("string_id")
    text = event if plugin is None else f"{plugin}: {event}"
    for exception in _exceptions(entry.get("plugin_exception") or entry.get("exception")):
        text += f"\n{exception}"
    duration = entry.get("duration_seconds") if event == "Run completed" else None
    return LogLine(
        level=_LEVELS.get(str(entry.get("level", "info")).lower(), logging.INFO),
        text=text,
        plugin=plugin if isinstance(plugin, str) else None,
        is_from_loader=entry.get("consumer") is True and entry.get("producer") is not True,
        metric=Metric.parse(entry.get("metric_info")) or _metric_in(event),
        duration_s=float(duration) if isinstance(duration, int | float) else None,
    )


def _exceptions(value: Any) -> Iterator[str]:
    """One text for each exception of a line.

    A plugin's exception is an object or a text; Meltano's own is a list, in which each is the cause
    of the one before.

    Source: singer_sdk.logging and structlog.tracebacks.ExceptionDictTransformer.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        kind, message = value.get("type"), value.get("message")
        yield f"{value.get('exc_type', kind)}: {value.get('exc_value', message)}"
    elif isinstance(value, list):
        for item in value:
            yield from _exceptions(item)


def _metric_in(text: str) -> Metric | None:
    match = _METRIC.search(text)
    if match is None:
        return None
    try:
        return Metric.parse(json.loads(match[1]))
    except ValueError:
        return None


@dataclass
class StreamCount:
    """What the extractor reported about one stream; None where it reported nothing."""

    records: int | None = None
    duration_s: float | None = None
    status: str | None = None


@dataclass
class MetricsTally:
    """Sums up the metrics of a run."""

    streams: dict[str, StreamCount] = field(default_factory=dict)
    warnings: int = 0
    #: The latest ones: a tap may log an error for each record.
    errors: list[str] = field(default_factory=list)
    #: Meltano's latest message about a state that it could not write.
    unwritten: str | None = None
    duration_s: float | None = None

    def add(self, line: LogLine) -> None:
        if line.level >= logging.ERROR:
            self.errors = [*self.errors, line.text][-_ERRORS_KEPT:]
            if _UNWRITTEN.search(line.text):
                self.unwritten = line.text
        elif line.level == logging.WARNING:
            self.warnings += 1
        if line.duration_s is not None:
            self.duration_s = line.duration_s
        metric = line.metric
        if metric is None or metric.stream is None or line.is_from_loader:
            return
        count = self.streams.setdefault(metric.stream, StreamCount())
        if metric.name == "record_count":
            # Logged once a minute and at the end, each time with what came since.
            count.records = (count.records or 0) + int(metric.value)
        elif metric.name in ("sync_duration", "job_duration"):
            count.duration_s = (count.duration_s or 0.0) + metric.value
            count.status = metric.status or count.status
