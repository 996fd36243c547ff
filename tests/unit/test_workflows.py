"""GitHub's workflows run what `.ci/run` runs, and test what the package claims."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

_REPOSITORY = Path(__file__).parents[2]
_FILES = sorted((_REPOSITORY / ".github").rglob("*.yml"))
_MAKEFILE = (_REPOSITORY / "Makefile").read_text("utf-8")
_TARGETS = set(re.findall(r"^([a-z-]+):", _MAKEFILE, re.MULTILINE))


def jobs() -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(
        (_REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8")
    )["jobs"]
    return jobs


def commands(job: dict[str, Any]) -> list[str]:
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_every_file_is_yaml(file: Path) -> None:
    assert yaml.safe_load(file.read_text("utf-8"))


def test_every_job_calls_ci_run_or_targets_that_exist() -> None:
    called = {
        name: [line for line in commands(job) if line.startswith(("make ", ".ci/run"))]
        for name, job in jobs().items()
    }

    assert called.pop("all") == [".ci/run"]
    for name, lines in called.items():
        [line] = lines
        words = re.sub(r'\w+="[^"]*"', "", line).split()[1:]
        assert words, name
        assert set(words) <= _TARGETS, name


def test_tests_that_a_job_names_are_there() -> None:
    named = re.findall(r'TEST_ARGS="([^"]*)"', "\n".join(map(str, map(commands, jobs().values()))))

    assert len(named) >= 3
    assert [
        path for each in named for path in each.split() if not (_REPOSITORY / path).exists()
    ] == []


def test_every_action_is_pinned_by_commit_and_says_its_version() -> None:
    """A tag can be moved to other code; Dependabot raises both."""
    text = (_REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8")
    used = re.findall(r"uses: (.*)", text)

    assert len(used) == sum("uses" in step for job in jobs().values() for step in job["steps"])
    pinned = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [line for line in used if not pinned.fullmatch(line)] == []


def test_ci_run_calls_targets_that_exist() -> None:
    script = (_REPOSITORY / ".ci/run").read_text("utf-8")
    lines = re.findall(r"^(?:\w+=\S+ |exec )?make (.+)$", script, re.MULTILINE)
    called = [word for line in lines for word in line.split() if not word.startswith("-")]

    assert {"lint", "docs", "test"} <= set(called) <= _TARGETS


def test_every_python_that_is_claimed_has_a_job_and_no_other() -> None:
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    claimed = [
        name.rpartition(" :: ")[2]
        for name in project["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    ]

    assert jobs()["python"]["strategy"]["matrix"]["python"] == claimed
    assert project["requires-python"] == f">={claimed[0]}"
    page = (_REPOSITORY / "docs/guides/install.md").read_text("utf-8")
    named = re.findall(r"3\.\d+", page.split(" tested, on Linux")[0].rpartition("\n\n")[2])
    assert named == claimed


def test_every_postgres_that_is_claimed_has_a_job() -> None:
    versions = jobs()["postgres"]["strategy"]["matrix"]["postgres"]
    page = (_REPOSITORY / "docs/guides/your-postgres.md").read_text("utf-8")

    assert f"servers of our own, PostgreSQL {versions[0]} to {versions[-1]}." in page
    assert versions == list(range(versions[0], versions[-1] + 1))
