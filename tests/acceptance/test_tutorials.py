"""The tutorials, followed to the letter where the package is installed as a reader installs it."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tutorials import Reader, read_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_REPOSITORY = Path(__file__).parents[2]
_TUTORIALS = _REPOSITORY / "docs" / "tutorials"


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
    where = subprocess.run(
        [environment / "bin" / "python", "-c", "import etl_dagster; print(etl_dagster.__file__)"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout).is_relative_to(packages)
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "USER")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
    }


@pytest.fixture
def reader(tmp_path: Path, environ: dict[str, str]) -> Iterator[Reader]:
    reader = Reader(tmp_path, environ)
    try:
        yield reader
    finally:
        reader.close()


def test_the_first_pipeline_runs_as_the_tutorial_shows(reader: Reader) -> None:
    reader.follow(read_steps(_TUTORIALS / "first-pipeline.md"))
