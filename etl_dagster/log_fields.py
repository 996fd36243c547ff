"""What a line of the log is about, as fields: which pipeline, which table, where in the stream."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

#: Of the present thread: by name, a value or what gives it when a line is written.
_fields: ContextVar[Mapping[str, str | Callable[[], str]]] = ContextVar("etl_dagster_log_fields")


@contextlib.contextmanager
def log_fields(**fields: str | Callable[[], str]) -> Iterator[None]:
    """Give these fields to every line that this thread logs inside of the block."""
    token = _fields.set({**_fields.get({}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object for a record: time, level, logger, message, and the thread's fields.

    A traceback is in ``exception``, as the plain log has it.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, str] = {
            "time": at,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields.get({}).items():
            # A name may have to be looked up where nothing answers now.
            with contextlib.suppress(Exception):
                line[name] = value if isinstance(value, str) else value()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    """A line for people.

    Args:
        names_pipelines: begin with the pipeline's name, where a process runs several.
    """

    def __init__(self, *, names_pipelines: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(about)s%(message)s", "%H:%M:%S")
        self._names_pipelines = names_pipelines

    def format(self, record: logging.LogRecord) -> str:
        pipeline = _fields.get({}).get("pipeline") if self._names_pipelines else None
        record.about = f"{pipeline}: " if isinstance(pipeline, str) else ""
        return super().format(record)
