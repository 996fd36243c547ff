"""The documentation: built as CI publishes it, and its examples run."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from etl_dagster.model.states import TRANSITIONS

_REPOSITORY = Path(__file__).parents[2]
_EXPLANATIONS = sorted((_REPOSITORY / "docs" / "explanation").glob("*.md"))
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

pytestmark = pytest.mark.slow


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, into another folder. (With --quiet MkDocs counts no warnings.)"""
    run = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*run, "--config-file", str(project / "mkdocs.yml"), "--site-dir", str(site)],
        cwd=project,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that the repository's own folder stays as it is."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(_REPOSITORY / "mkdocs.yml", project)
    shutil.copytree(_REPOSITORY / "docs", project / "docs")
    (project / "etl_dagster").symlink_to(_REPOSITORY / "etl_dagster")
    subprocess.run([sys.executable, project / "docs" / "generate.py"], check=True)
    return project


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if made := os.environ.get("ETL_DAGSTER_SITE"):
        return Path(made)  # by `make docs`, as in CI
    project = copied(tmp_path_factory)
    site = project / "site"
    built = build(project, site)
    assert built.returncode == 0, built.stdout + built.stderr
    return site


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    assert (site / "index.html").exists()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """By the site's settings, with a page in place of its pages."""
    page = tmp_path / "docs" / "index.md"
    page.parent.mkdir()
    page.write_text("[gone](reference/nothing.md) and [nowhere](index.md#nowhere)\n", "utf-8")
    settings = (_REPOSITORY / "mkdocs.yml").read_text("utf-8")
    settings, count = re.subn(r"(?ms)^nav:$.*?^(?=\S)", "nav: [index.md]\n", settings)
    assert count == 1
    (tmp_path / "mkdocs.yml").write_text(settings, "utf-8")

    built = build(tmp_path, tmp_path / "site")

    assert built.returncode != 0
    assert "reference/nothing.md" in built.stderr
    assert "#nowhere" in built.stderr
    assert built.stderr.count("WARNING") == 2


class _Requests(HTMLParser):
    """Addresses that a browser asks for while it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        if address := values.get(wanted.get(tag, "")):
            self.addresses.add(address)


def test_no_page_loads_anything_from_another_server(site: Path) -> None:
    asked: set[str] = set()
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        requests = _Requests()
        requests.feed(page.read_text("utf-8"))
        # A diagram that is drawn in the browser would fetch the program that draws it.
        assert 'class="mermaid"' not in page.read_text("utf-8")
        asked |= requests.addresses
    for sheet in site.rglob("*.css"):
        asked |= set(re.findall(r"url\(['\"]?([^'\")]+)", sheet.read_text("utf-8")))

    assert asked
    assert [a for a in asked if re.match(r"(https?:)?//", a)] == []


def test_the_drawing_of_a_tables_life_has_every_state_and_every_transition(site: Path) -> None:
    page = (site / "explanation" / "architecture.html").read_text("utf-8")
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", page, re.S) if "states-head" in d)

    names = {kind.__name__ for kind in TRANSITIONS}
    assert set(re.findall(r'<text class="mono"[^>]*>(\w+)<', drawing)) == names
    drawn = set(re.findall(r"<title>(\w+) to (\w+)</title>", drawing))
    assert drawn == {(a.__name__, b.__name__) for a, after in TRANSITIONS.items() for b in after}


def test_every_setting_and_every_command_has_its_entry(site: Path) -> None:
    from etl_dagster.cli.app import cli
    from etl_dagster.config import PipelineConfig

    settings = (site / "reference" / "configuration.html").read_text("utf-8")
    for name, field in PipelineConfig.model_fields.items():
        assert f"<code>{field.alias or name}</code>" in settings
    for name in ("publication", "path", "max_fill_ms", "chunk_rows", "max_attempts"):
        assert f"<code>{name}</code>" in settings
    commands = (site / "reference" / "command-line.html").read_text("utf-8")
    for name in cli.commands:
        assert f"<code>etl-dagster {name}</code>" in commands


@pytest.mark.parametrize("page", _EXPLANATIONS, ids=lambda page: page.stem)
def test_the_examples_of_a_page_give_what_it_shows(page: Path) -> None:
    text = page.read_text("utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    results = doctest.DocTestRunner(optionflags=_FLAGS).run(examples)

    assert results.failed == 0
    assert results.attempted == text.count(">>> ")
    assert (results.attempted > 0) == ("```pycon" in text)
