"""PyPI's page is README with links that work there, and what is new."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_HERE = re.compile(
    r"https://(?:raw\.githubusercontent|github)\.com/etl-dagster/etl-dagster/(?:blob/)?main/([^)#\s]+)"
)


@pytest.fixture(scope="module")
def page() -> str:
    command = [sys.executable, "-m", "hatch_fancy_pypi_readme"]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_link_and_picture_leads_to_a_file_of_the_repository(page: str) -> None:
    """Not to one that `make docs` creates: GitHub does not have it."""
    ignored = (_REPOSITORY / ".gitignore").read_text("utf-8").splitlines()
    paths = set(_HERE.findall(page))

    assert len(paths) > 30
    assert [path for path in paths if not (_REPOSITORY / path).exists() or path in ignored] == []
    assert [link for link in re.findall(r"\]\(([^)]+)\)", page) if ":" not in link] == []


def test_the_page_ends_with_the_newest_section_of_the_changelog(page: str) -> None:
    text = (_REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    newest = re.split(r"^## ", text, flags=re.MULTILINE)[1]

    assert page.rstrip().endswith(f"# What is new\n\n## {newest.rstrip()}")
