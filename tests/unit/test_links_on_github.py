"""A reader of a page on GitHub, where no site is built, finds what it links to and includes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_HERE = "https://github.com/etl-dagster/etl-dagster/"
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|^\[[^]]+\]: (\S+)|href=\"([^\"]+)\"", re.MULTILINE)
_FOLDERS = ("docs", "etl_dagster", "examples", "benchmarks", ".github")
_PAGES = sorted(
    page
    for page in [
        *_REPOSITORY.glob("*.md"),
        *(page for folder in _FOLDERS for page in (_REPOSITORY / folder).rglob("*.md")),
    ]
    if "generated" not in page.parts
)


def ignored() -> list[Path]:
    """What `make docs` writes into the folder of the documentation, and git leaves out."""
    lines = (_REPOSITORY / ".gitignore").read_text("utf-8").splitlines()
    return [_REPOSITORY / line for line in lines if line.startswith("docs/")]


def target(page: Path, link: str) -> Path | None:
    """The file or folder of the repository that a link leads to."""
    address = re.split("[#?]", link)[0]
    if address.startswith(_HERE):
        found = re.fullmatch(r"(?:blob|tree)/main/(.+)", address.removeprefix(_HERE))
        return _REPOSITORY / found[1] if found else None
    if not address or ":" in address:
        return None
    return (page.parent / address).resolve()


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_REPOSITORY)))
def test_every_link_leads_to_a_file_that_git_has(page: Path) -> None:
    text = _FENCE.sub("", page.read_text("utf-8"))
    links = ["".join(found) for found in _LINK.findall(text)]
    files = {link: file for link in links if (file := target(page, link))}

    assert [link for link, file in files.items() if not file.exists()] == []
    left_out = ignored()
    assert left_out
    assert [
        link
        for link, file in files.items()
        if any(file == each or each in file.parents for each in left_out)
    ] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_REPOSITORY)))
def test_what_only_the_site_shows_is_linked_to(page: Path) -> None:
    """Parts that the site's builder includes, and references to the code by name."""
    text = page.read_text("utf-8")
    included = len(re.findall(r"^--8<--", text, re.MULTILINE))
    described = bool(re.search(r"^:::", text, re.MULTILINE))
    names = set(re.findall(r"\]\[(etl_dagster[\w.]+)\]", text))

    assert text.count('<p class="on-github"') >= included + described
    assert names == set(re.findall(r"^\[(etl_dagster[\w.]+)\]: ", text, re.MULTILINE))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_REPOSITORY)))
def test_no_page_uses_what_github_shows_as_signs(page: Path) -> None:
    """Boxes, tabs and keys that only the site's builder knows."""
    text = page.read_text("utf-8")

    assert re.findall(r"^ *(?:!!!|\?\?\?\+?|===!?) .*|\+\+[a-z+-]+\+\+", text, re.MULTILINE) == []
