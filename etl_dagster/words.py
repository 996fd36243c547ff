"""Lists and sizes in words, as every message and report writes them."""

from __future__ import annotations

from collections.abc import Sequence


def names(items: Sequence[str], *, at_most: int = 8) -> str:
    """The names, the first ones and a count when there are many.

    >>> names(["a", "b", "c", "d"], at_most=3)
    'a, b, c and 1 more'
    """
    more = len(items) - at_most
    listed = ", ".join(items[:at_most])
    return f"{listed} and {more} more" if more > 0 else listed


def row_count(count: int | None, *, is_estimated: bool) -> str:
    """A number of rows for people; nothing where it is not known.

    >>> row_count(1200, is_estimated=True)
    '~1,200'
    """
    if count is None:
        return ""
    return f"~{count:,}" if is_estimated else f"{count:,}"


def human_bytes(count: int) -> str:
    """A size for people.

    >>> human_bytes(3 * 1024**3 // 2)
    '1.5 GiB'
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
