"""The demo where something it needs does not answer, or is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.demo.app import _warn_of_load_error
from etl_dagster.demo.processes import Child
from etl_dagster.demo.server import EmbeddedPostgres, ServerBinaries, ServerError, _Account


def test_a_program_that_does_not_end_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As initdb on a disk that hangs."""
    with pytest.raises(ServerError, match=r"sleep did not end within 0\.05 s") as caught:
        _Account().run(["/bin/sleep", "600"], folder=tmp_path, timeout_s=0.05)
    assert "Start it again" in caught.value.solution


def test_programs_that_are_missing_cannot_be_used(tmp_path: Path) -> None:
    assert not _Account().can_use(ServerBinaries(tmp_path, "18"), tmp_path)


def test_a_password_that_is_gone_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"password can't be read from .*/password: No such file"):
        assert EmbeddedPostgres(tmp_path).password


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    child = Child(["/bin/echo", "hello"], log=tmp_path / "log", folder=tmp_path)
    try:
        yield child
    finally:
        child.stop(60.0)


def test_a_program_whose_log_was_removed_can_still_be_reported(child: Child) -> None:
    child.stop(60.0)
    assert child.log_end() == "hello"
    child.log.unlink()
    assert "its log can't be read: No such file" in child.log_end()


@contextmanager
def answering(payload: Any) -> Iterator[str]:
    """A server that gives this answer to one request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(payload).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        {"data": None, "errors": [{"message": "unknown field"}]},
        {"data": {"workspaceOrError": {"message": "broken"}}},
        {"data": {"workspaceOrError": {"locationEntries": None}}},
        [],
    ],
)
def test_a_dagster_that_answers_in_another_way_does_not_end_the_demo(
    child: Child, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(answer) as url:
        _warn_of_load_error(url, child)
    assert capsys.readouterr().out == ""


def test_an_error_of_the_pipelines_definitions_is_shown(
    child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"__typename": "PythonError", "message": "no such column\n"}
    entries = [{"locationOrLoadError": None}, {"locationOrLoadError": error}]
    with answering({"data": {"workspaceOrError": {"locationEntries": entries}}}) as url:
        _warn_of_load_error(url, child)
    assert "could not load the pipeline: no such column\n" in capsys.readouterr().out
