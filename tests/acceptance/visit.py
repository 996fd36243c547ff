"""A person at Dagster's pages: a real browser, without a screen."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

#: Where pictures of what was seen are kept; without it none are made. See `make pictures`.
PICTURES = "ETL_TEST_PICTURES"
_SIZE = {"width": 1400, "height": 900}
#: What pictures show instead of the folder of the demo.
_FOLDER = "/home/you/etl_dagster"
_RENAME = """([from, to]) => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
    }
}"""
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Visit:
    """One visitor, who opens pages, reads and clicks."""

    def __init__(self, page: Page, url: str, home: Path) -> None:
        self._page = page
        self._url = url
        self._home = home
        folder = os.environ.get(PICTURES)
        self._pictures = Path(folder) if folder else None

    def open(self, path: str) -> None:
        self._page.goto(self._url + path)

    def leave(self) -> None:
        """Leave the page, which asks the webserver every second for as long as it is open."""
        self._page.goto("about:blank")

    def sees(self, text: str, *, exactly: bool = False) -> Locator:
        """Wait until the page shows the text, alone in its place or as a part of it."""
        found = self._page.get_by_text(text, exact=exactly).first
        found.wait_for()
        return found

    def does_not_see(self, text: str) -> None:
        """Wait until the page doesn't show the text."""
        self._page.get_by_text(text).first.wait_for(state="hidden")

    def clicks(self, label: str, *, in_dialog: bool = False) -> None:
        """Click a button, once it can be clicked."""
        page = self._page.get_by_role("dialog") if in_dialog else self._page
        # Of its accessible name, the icon may be a part.
        page.locator("button", has_text=re.compile(f"^{re.escape(label)}$")).first.click()

    def picture(self, name: str, *, height: int = _SIZE["height"]) -> None:
        """Keep what is seen as a picture, where pictures are wanted."""
        if self._pictures is not None:
            self._page.set_viewport_size(_SIZE | {"height": height})
            self._page.wait_for_timeout(1000)  # what moves or unfolds comes to rest
            self._pictures.mkdir(parents=True, exist_ok=True)
            # As the page writes it, in a text and in a URI.
            for folder in (str(self._home), self._home.as_uri().removeprefix("file://")):
                self._page.evaluate(_RENAME, [folder, _FOLDER])
            self._page.screenshot(path=self._pictures / f"{name}.png")
            self._page.set_viewport_size(_SIZE)


@contextmanager
def visiting(url: str, home: Path) -> Iterator[Visit]:
    """A browser that is closed after this block; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright here: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox to offer.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport=_SIZE)  # type: ignore[arg-type]
            page.set_default_timeout(PATIENCE_S * 1000)
            yield Visit(page, url, home)
        finally:
            browser.close()
