"""A Redis and Celery workers of a test's own; each may be killed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from etl_dagster.demo.ports import free_port

REDIS = shutil.which("redis-server")
_MISSING = [
    *(["redis-server"] if REDIS is None else []),
    *(name for name in ("dagster_celery", "redis") if importlib.util.find_spec(name) is None),
]
needs_celery = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
_ROOT = Path(__file__).parents[2]


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a server that keeps nothing."""
    assert REDIS is not None
    port = free_port()
    command = [
        REDIS,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@contextmanager
def celery_workers(broker: str, folder: Path, count: int) -> Iterator[Sequence[CeleryWorker]]:
    """Workers that execute one step at a time each, with the environment of this process."""
    with ExitStack() as stack:
        workers = [CeleryWorker(broker, folder, number) for number in range(count)]
        for worker in workers:
            stack.callback(worker.kill)
        yield workers


class CeleryWorker:
    """A worker with its pool of one process; its log is in the folder."""

    def __init__(self, broker: str, folder: Path, number: int) -> None:
        # Where `dagster-celery worker start -y` leaves the settings, too.
        (folder / "dagster_celery_config.py").write_text(
            f"broker_url = result_backend = {broker!r}\nworker_prefetch_multiplier = 1\n"
        )
        path = os.pathsep.join([str(folder), str(_ROOT)])
        with (folder / f"worker_{number}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "dagster_celery.app", "worker"),
                    *("--concurrency", "1", "-n", f"worker_{number}@%h", "-Q", "dagster"),
                    *("--without-gossip", "--without-mingle"),
                ],
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """With SIGKILL, and its pool."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
