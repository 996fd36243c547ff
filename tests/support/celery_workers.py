"""A Redis and Celery workers of a test's own; each may be killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from etl_dagster.demo.ports import free_port
from tests.support.machines import Machine

REDIS = shutil.which("redis-server")
_MISSING = [
    *(["redis-server"] if REDIS is None else []),
    *(name for name in ("dagster_celery", "redis") if importlib.util.find_spec(name) is None),
]
needs_celery = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")


@contextmanager
def redis(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """The URL of a server that keeps nothing."""
    assert REDIS is not None
    port = free_port()
    command = [
        *(REDIS, "--port", str(port), "--bind", host, "--protected-mode", "no"),
        *("--save", "", "--dir", str(folder)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://{host}:{port}/0"
    finally:
        process.kill()
        process.wait()


@contextmanager
def celery_workers(
    broker: str, machines: Sequence[Machine], environment: Mapping[str, str]
) -> Iterator[Sequence[CeleryWorker]]:
    """A worker on each machine, which executes one step at a time."""
    with ExitStack() as stack:
        workers = [CeleryWorker(broker, machine, environment) for machine in machines]
        for worker in workers:
            stack.callback(worker.kill)
        yield workers


class CeleryWorker:
    """A worker with its pool of one process; its log is in the machine's folder."""

    def __init__(self, broker: str, machine: Machine, environment: Mapping[str, str]) -> None:
        # Where `dagster-celery worker start -y` leaves the settings, too.
        (machine.folder / "dagster_celery_config.py").write_text(
            f"broker_url = result_backend = {broker!r}\nworker_prefetch_multiplier = 1\n"
        )
        command = [
            *(sys.executable, "-m", "celery", "-A", "dagster_celery.app", "worker"),
            *("--concurrency", "1", "-n", f"worker@{machine.name}", "-Q", "dagster"),
            *("--without-gossip", "--without-mingle"),
        ]
        with (machine.folder / "worker.log").open("wb") as log:
            self._process = machine.start(command, environment, log)

    def kill(self) -> None:
        """With SIGKILL, and its pool."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
