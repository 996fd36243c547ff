"""The tutorials, followed to the letter where the package is installed as a reader installs it."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import site
import subprocess
import sys
import threading
import tomllib
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from etl_dagster.demo.ports import free_port
from etl_dagster.model.events import EventBatch
from tests.support.tutorials import Expect, Reader, Step, Type, read_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_REPOSITORY = Path(__file__).parents[2]
_TUTORIALS = _REPOSITORY / "docs" / "tutorials"
_SNIPPETS = _REPOSITORY / "docs" / "snippets"


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An activated virtual environment that has the package from its wheel."""
    folder = tmp_path_factory.mktemp("installed")
    run = [sys.executable, "-m"]
    subprocess.run(
        [*run, "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=_REPOSITORY, check=True
    )
    [wheel] = folder.glob("*.whl")
    environment = folder / ".venv"
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # What the package depends on is here already. Python doesn't look for .pth files in a folder
    # that a .pth file names, so the editable install of this repository isn't among it.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    pip = [*run, "pip", "--python", str(environment / "bin" / "python"), "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, *options, str(wheel)], check=True)
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "USER")
    environ = {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        "RECEIVER_URL": f"http://127.0.0.1:{free_port()}",
    }
    where = subprocess.run(
        [environment / "bin" / "python", "-c", "import etl_dagster; print(etl_dagster.__file__)"],
        cwd=folder,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout).is_relative_to(packages)
    return environ


@pytest.fixture
def reader(tmp_path: Path, environ: dict[str, str]) -> Iterator[Reader]:
    reader = Reader(tmp_path, environ)
    try:
        yield reader
    finally:
        reader.close()


def test_the_first_pipeline_runs_as_the_tutorial_shows(reader: Reader) -> None:
    reader.follow(read_steps(_TUTORIALS / "first-pipeline.md"))


def test_a_store_and_a_destination_of_ones_own_lose_nothing(reader: Reader) -> None:
    reader.follow(read_steps(_TUTORIALS / "custom-stores-and-destinations.md"))


def test_the_tutorials_destination_has_at_most_forty_lines() -> None:
    code = (_SNIPPETS / "http_destination.py").read_text("utf-8")

    assert len(code.splitlines()) <= 40


@pytest.mark.parametrize(
    ("answers", "requests"),
    [([204], 1), ([500, 429, 503, 204], 4), ([404], 1), ([422, 204], 1)],
)
def test_the_tutorials_destination_retries_only_transient_failures(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], requests: int
) -> None:
    came = 0

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal came
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers[came])
            self.end_headers()
            came += 1

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.syspath_prepend(_SNIPPETS)
    destination_type = importlib.import_module("http_destination").HttpDestination
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        destination = destination_type(f"http://127.0.0.1:{server.server_port}")
        refused = answers[requests - 1] >= 400
        with pytest.raises(httpx.HTTPStatusError) if refused else contextlib.nullcontext():
            destination.write_events(EventBatch({}))
        server.shutdown()

    assert came == requests


def test_what_a_reader_is_told_to_install_can_be_installed() -> None:
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    for page in _TUTORIALS.glob("*.md"):
        told = re.findall(
            r"^pip install '([\w-]+)\[(\w+)\]'$", page.read_text("utf-8"), re.MULTILINE
        )
        assert told, page.name
        for name, extra in told:
            assert name == project["name"]
            assert extra in project["optional-dependencies"]


@pytest.mark.parametrize(
    "steps",
    [
        [Type(1, "echo one; echo two"), Expect(1, "one\nthree")],
        [Type(1, "echo one; echo two"), Expect(1, "two")],
        [Type(1, "false; true")],
        [Type(1, "echo one; exit", keeps_running=True), Expect(1, "two")],
    ],
    ids=["other output", "more output", "a command that fails", "an early end"],
)
def test_a_tutorial_that_shows_something_else_fails(reader: Reader, steps: list[Step]) -> None:
    with pytest.raises(AssertionError):
        reader.follow(steps)


def test_a_block_that_is_not_run_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "tutorials" / "page.md"
    page.parent.mkdir()
    page.write_text("```bash\necho\n```\n", "utf-8")

    with pytest.raises(ValueError, match="without a title"):
        read_steps(page)
