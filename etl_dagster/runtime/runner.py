"""Which process runs a pipeline, for one that finds it running."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime

from etl_dagster.errors import EtlError, PipelineInUse
from etl_dagster.model.stores import CoordinatingStore

#: Key of the status; and of the process that runs all of several destinations, whose pipelines have
#: statuses of their own.
RUNNER, RUNNER_OF_SEVERAL = "runner", "fan out runner"


def note_runner(store: CoordinatingStore, key: str = RUNNER) -> None:
    """Show that this process runs the pipeline; it has the lease."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store.publish_status(key, {"host": socket.gethostname(), "pid": os.getpid(), "since": now})


def in_use(
    store: CoordinatingStore, pipeline: str, who: str = "another process", *, key: str = RUNNER
) -> PipelineInUse:
    """The error for a pipeline that another process runs, with that process where it is known."""
    return PipelineInUse(f"{who} runs the pipeline {pipeline!r}{describe_runner(store, key)}")


def describe_runner(store: CoordinatingStore, key: str = RUNNER) -> str:
    """Such as `` (PID 71 on host db1, since 2026-11-26T05:00:00+00:00)``; empty when unknown."""
    try:
        status = store.get_status(key) or {}
        return f" (PID {status['pid']} on host {status['host']}, since {status['since']})"
    except (EtlError, KeyError):
        return ""
