"""Starts a server for HTTP destinations (`http_receiver`), kills it, and asks what it has."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import httpx

from etl_dagster.destinations.http import HttpDestination
from etl_dagster.model.json_values import row_from_json
from etl_dagster.model.schema import TableSchema

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
        self._port = 0
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

    def wait_until_dead(self, timeout_s: float = 30) -> int:
        """Wait for a death that somebody else is the cause of; its exit code."""
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


class HttpSubject:
    """A destination and its receiver, for the suite of all destinations.

    They share one receiver, which begins with nothing for each.
    """

    _shared: ClassVar[Receiver | None] = None

    def __init__(self, **settings: Any) -> None:
        if HttpSubject._shared is None:
            folder = Path(tempfile.mkdtemp(prefix="etl-test-http-"))
            HttpSubject._shared = Receiver(folder)
            atexit.register(shutil.rmtree, folder)
            atexit.register(HttpSubject._shared.__exit__)
        self.receiver = HttpSubject._shared
        self.receiver.forget()
        self.destination = HttpDestination(self.receiver.url, **settings)

    def rows(self, schema: TableSchema) -> list[dict[str, Any]]:
        found = self.receiver.rows(schema.name) or []
        return [row_from_json(schema.columns, row) for row in found]

    def exists(self, schema: TableSchema) -> bool:
        return self.receiver.rows(schema.name) is not None

    def changelog(self) -> list[tuple[int, str, int, int]]:
        return self.receiver.changelog()
