"""A code location with a job whose steps copy `public.orders` together.

What it copies and how comes from the environment, since each step may load it in a process of its
own.
"""

from __future__ import annotations

import os
from pathlib import Path

from dagster import (
    ExecutorDefinition,
    JobDefinition,
    in_process_executor,
    multiprocess_executor,
)

from etl_dagster.integrations.dagster import build_copy_job
from tests.support.dagster_in_process import timed

#: The configuration file, and the number of steps.
CONFIG, WORKERS = "SHARED_COPY_CONFIG", "SHARED_COPY_WORKERS"

#: The URL of the broker of Celery, which has the results, too.
BROKER = "SHARED_COPY_BROKER"

#: Waits of this process (`DagsterTiming`), which a test may change.
WAITS: dict[str, float] = {}


def copy_orders() -> JobDefinition:
    """The job in one process."""
    return _job(in_process_executor)


# A process that has loaded a job by its function keeps it, so each executor has a function.


def copy_orders_in_processes() -> JobDefinition:
    """The job with a process for each step, as a function that these can find."""
    return _job(multiprocess_executor)


def copy_orders_on_celery() -> JobDefinition:
    """The job on Celery's workers, as a function that these can find."""
    from dagster_celery import celery_executor

    broker = os.environ[BROKER]
    return _job(celery_executor.configured({"broker": broker, "backend": broker}))


def _job(executor: ExecutorDefinition) -> JobDefinition:
    return build_copy_job(
        timed(Path(os.environ[CONFIG]), WAITS),
        "public.orders",
        workers=int(os.environ[WORKERS]),
        executor_def=executor,
        name="copy_orders",
    )
