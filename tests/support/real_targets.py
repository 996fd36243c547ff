"""Singer targets from PyPI, each in an environment of its own below ``.venv``.

They are installed when a test first asks, and stay: the next session finds them.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from filelock import FileLock

_FOLDER: Final = Path(__file__).parents[2] / ".venv" / "singer-targets"
#: What is installed, by the program's name. Of exact versions, since each is what a test is about.
PACKAGES: Final = {
    "target-jsonl": ["target-jsonl==0.1.4"],
    "target-postgres": ["meltanolabs-target-postgres==0.8.1"],
    # From DuckDB 1.3 on it takes the first row of what it loads for the names of the columns.
    "target-duckdb": ["target-duckdb==0.8.0", "duckdb==1.2.2"],
}


@functools.cache
def real_target(name: str) -> Path:
    """The program of a target; installed when it isn't there yet, which takes some seconds."""
    packages = PACKAGES[name]
    folder = _FOLDER / packages[0].replace("==", "-")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / ".installed").exists():
            _install(folder, packages)
            (folder / ".installed").touch()
    return folder / "bin" / name


def _install(folder: Path, packages: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    if (uv := shutil.which("uv")) is not None:
        made = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        made = [sys.executable, "-m", "venv", str(folder)]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(made, check=True)
    subprocess.run([*install, *packages], check=True)
