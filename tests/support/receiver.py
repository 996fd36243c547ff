"""Starts a server for HTTP destinations (`http_receiver`), kills it, and asks what it has."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from etl_dagster.demo.ports import free_port
from tests.support.waiting import PATIENCE_S

_ROOT = Path(__file__).parents[2]


class Receiver:
    """A server process on a port that stays the same when it is started again."""

    def __init__(self, folder: Path, *options: str, module: str = "http_receiver") -> None:
        self._command = [
            *(sys.executable, "-m", f"tests.support.{module}"),
            str(folder / "receiver.sqlite"),
            *options,
        ]
        self._scheme = "https" if "--certificate" in options else "http"
        self._log = (folder / "receiver.log").open("ab")
        self._process: subprocess.Popen[str] | None = None
        self._port = free_port()
        self.starts = 0
        self.kills = 0
        self.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it unless it lives; it listens when this returns."""
        if self.is_alive:
            return
        self._wait()
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self._port)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=_ROOT,
            text=True,
        )
        assert self._process.stdout is not None
        word, _, port = self._process.stdout.readline().partition(" ")
        assert word == "listening", Path(self._log.name).read_text()
        self._port = int(port)
        self.starts += 1

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._wait()
            self.kills += 1

    def wait_until_dead(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for a death that another process causes; its exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._wait()
        return code

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    # -- asking ------------------------------------------------------------------------------

    def rows(self, table_name: str) -> list[dict[str, Any]] | None:
        """A table's rows in JSON's values; None when it doesn't exist."""
        found: list[dict[str, Any]] | None = self._get("/rows", table=table_name)
        return found

    def changelog(self) -> list[tuple[int, str, int, int]]:
        return [(table_id, op, lsn, n) for table_id, op, lsn, n in self._get("/changelog")]

    def requests(self) -> list[dict[str, Any]]:
        """All that came in since its start, with what was answered."""
        found: list[dict[str, Any]] = self._get("/requests")
        return found

    def most_requests_at_once(self) -> int:
        return int(self._get("/most_running"))

    def misbehave(self, *faults: dict[str, Any]) -> None:
        """Have the next requests get these in place of their answers."""
        httpx.post(f"{self.url}/control", json=faults, verify=False).raise_for_status()

    def release(self) -> None:
        """Have late answers be given now."""
        httpx.post(f"{self.url}/control/release", verify=False).raise_for_status()

    def forget(self) -> None:
        """Have it begin again with nothing."""
        httpx.post(f"{self.url}/control/forget", verify=False).raise_for_status()

    def _get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(self.url + path, params=parameters, verify=False)
        return response.raise_for_status().json()


_shared: dict[Path, Receiver] = {}


def shared_receiver(folder: Path) -> Receiver:
    """One server for all checks of a suite; it begins with nothing for each new folder."""
    running = next(iter(_shared.values()), None)
    if running is None:
        state = Path(tempfile.mkdtemp(prefix="etl-test-http-"))
        running = Receiver(state)
        atexit.register(shutil.rmtree, state)
        atexit.register(running.__exit__)
    if folder not in _shared:
        running.forget()
        _shared.clear()
        _shared[folder] = running
    return running
