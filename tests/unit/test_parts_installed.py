"""Each part works with nothing but its own packages: a lean server leaves the rest out."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DAGSTER = {"dagster", "dagster-postgres"}
NOT_ENGINE = {*DAGSTER, "dagster-webserver", "meltano"}

#: Run first in the interpreter: what is not installed can't be imported.
HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)
sys.meta_path.insert(0, Hidden())
"""


def dependencies() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {Requirement(line).name: Requirement(line) for line in project["dependencies"]}


def closure(requirements: list[Requirement]) -> set[str]:
    """The distributions that these need, with all that those need."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.distribution(requirement.name).requires or []:
            further = Requirement(line)
            extras = [*requirement.extras, ""]
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras):
                todo.append(further)
    return {name for name, _ in seen}


def hidden_without(parts: set[str]) -> set[str]:
    """Top-level modules of every distribution here that these parts don't bring."""
    wanted = [r for name, r in dependencies().items() if name not in NOT_ENGINE or name in parts]
    there = closure(wanted) | {"etl-dagster"}
    hidden, kept = set(), set()
    for module, names in metadata.packages_distributions().items():
        is_there = any(canonicalize_name(name) in there for name in names)
        (kept if is_there else hidden).add(module)
    return {name for name in hidden - kept if re.fullmatch(r"\w+", name)}


@pytest.mark.parametrize(
    ("parts", "imports"),
    [
        (
            set(),
            "etl_dagster.cli.app etl_dagster.cli.run etl_dagster.replicator etl_dagster.embedding "
            "etl_dagster.destinations.duckdb.destination etl_dagster.destinations.http.destination "
            "etl_dagster.destinations.postgres.destination etl_dagster.stores.postgres.store "
            "etl_dagster.integrations.meltano.positions.mirror",
        ),
        (DAGSTER, "etl_dagster.dagster etl_dagster.meltano"),
        ({"meltano"}, "etl_dagster.integrations.meltano.backend etl_dagster.cli.state"),
    ],
    ids=["engine", "dagster", "meltano"],
)
def test_a_part_imports_with_its_own_packages_alone(parts: set[str], imports: str) -> None:
    hidden = hidden_without(parts)
    assert "pytest" in hidden
    lines = [f"HIDDEN = {hidden!r}", HIDE, *(f"import {name}" for name in imports.split())]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_guide_names_every_package_of_the_engine() -> None:
    page = (ROOT / "docs" / "guides" / "install.md").read_text("utf-8")
    [command] = re.findall(r"pip install (adbc.*?)\n\n", page, re.DOTALL)
    named = {Requirement(word).name for word in command.replace("\\", "").replace("'", "").split()}
    assert named == dependencies().keys() - NOT_ENGINE
