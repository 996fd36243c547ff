"""A code location with a job whose steps copy `public.orders` together.

What it copies and how comes from the environment, since each step may load it in a process of its
own.
"""

from __future__ import annotations

import os

from dagster import (
    ExecutorDefinition,
    JobDefinition,
    in_process_executor,
    multiprocess_executor,
)

from etl_dagster.integrations.dagster import build_copy_job

#: The configuration file, the executor's name, and the number of steps.
CONFIG, EXECUTOR, WORKERS = "SHARED_COPY_CONFIG", "SHARED_COPY_EXECUTOR", "SHARED_COPY_WORKERS"

#: The URL of the broker of Celery, which has the results, too.
BROKER = "SHARED_COPY_BROKER"


def copy_orders() -> JobDefinition:
    """The job, as a function that another process can find."""
    return build_copy_job(
        os.environ[CONFIG],
        "public.orders",
        workers=int(os.environ[WORKERS]),
        executor_def=_executor(os.environ[EXECUTOR]),
        name="copy_orders",
    )


def _executor(name: str) -> ExecutorDefinition:
    if name == "celery":
        from dagster_celery import celery_executor

        broker = os.environ[BROKER]
        return celery_executor.configured({"broker": broker, "backend": broker})
    return {"in_process": in_process_executor, "multiprocess": multiprocess_executor}[name]
