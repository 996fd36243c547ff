"""The examples on a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[2] / "docs"
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of one language, in their order.

    Args:
        page: its path below `docs`.
    """
    text = (DOCS / page).read_text("utf-8")
    return [body for found, body in _BLOCK.findall(text) if found == language]


def block_with(page: str, language: str, part: str) -> str:
    """The one code block that contains a text."""
    (found,) = [body for body in blocks(page, language) if part in body]
    return found
