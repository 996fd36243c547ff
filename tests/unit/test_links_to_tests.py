"""What the documentation claims links to the test that holds it, and that test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_LINK = re.compile(r"\[test\]\(https://github\.com/[\w/-]+/blob/main/(\S+\.py) \"(\w+)\"\)")
# Those of docs/generated are as old as the latest `make docs`; `test_runbook` checks their links.
_PAGES = [
    page
    for page in sorted((_REPOSITORY / "docs").rglob("*.md"))
    if "generated" not in page.parts and "[test](" in page.read_text("utf-8")
]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_every_test_that_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = _LINK.findall(text)

    assert len(links) == text.count("[test](")
    missing = [
        f"{path}::{name}"
        for path, name in links
        if not (_REPOSITORY / path).exists()
        or f"def {name}(" not in (_REPOSITORY / path).read_text("utf-8")
    ]
    assert missing == []


def test_the_pages_that_compare_and_promise_have_such_links() -> None:
    assert {"comparison", "guarantees"} <= {page.stem for page in _PAGES}
