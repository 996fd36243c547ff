"""Values with parts, read the obvious way: one character after the other, one Python object each.

What the readers of the product do at once for thousands of values must be what this does for each.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

Part = Callable[[str], Any]


class Odd(Exception):
    """The value isn't what its column declares."""


def read_array(text: str, part: Part, dimensions: int, delimiter: str = ",") -> Any:
    """Lists in lists. `part` raises `Odd` where the part's type can't hold it."""
    if not text.startswith("{"):
        raise Odd
    source = io.StringIO(text)
    source.read(1)
    value = _array(source, part, delimiter)
    if value and _depth(value) != dimensions:
        raise Odd
    return value


class _Elements(list[Any]):
    """Told from a list that a part is."""


def _depth(value: _Elements) -> int:
    return 1 + (_depth(value[0]) if isinstance(value[0], _Elements) else 0)


def _array(source: io.StringIO, part: Part, delimiter: str) -> _Elements:
    found = _Elements()
    while True:
        character = source.read(1)
        if character == "}":
            return found
        if character == delimiter:
            continue
        if character == "{":
            found.append(_array(source, part, delimiter))
        elif character == '"':
            found.append(part(_quoted(source)))
        else:
            word = character
            while (character := source.read(1)) not in (delimiter, "}"):
                word += character
            found.append(None if word == "NULL" else part(word))
            if character == "}":
                return found


def _quoted(source: io.StringIO) -> str:
    """Up to the closing quote; a backslash stands before what isn't meant as such."""
    word = ""
    while (character := source.read(1)) != '"':
        word += source.read(1) if character == "\\" else character
    return word


def read_composite(text: str, parts: dict[str, Part]) -> dict[str, Any]:
    texts = _doubled(text[1:-1])
    if not (text[0] == "(" and text[-1] == ")") or len(texts) != len(parts):
        raise Odd
    return {
        name: None if word is None else part(word)
        for (name, part), word in zip(parts.items(), texts, strict=True)
    }


def _doubled(text: str) -> list[str | None]:
    """What commas separate; quotes and backslashes inside of quotes are written twice."""
    found: list[str | None] = []
    word, is_quoted, place = "", False, 0
    while place <= len(text):
        character = text[place : place + 1]
        if character in (",", ""):
            found.append(word if word or is_quoted else None)
            word, is_quoted = "", False
        elif character == '"':
            is_quoted = True
            place += 1
            while True:
                if text[place] == '"':
                    if text[place + 1 : place + 2] != '"':
                        break
                    place += 1
                elif text[place] == "\\":
                    place += 1
                word += text[place]
                place += 1
        else:
            word += character
        place += 1
    return found


def read_range(text: str, part: Part) -> dict[str, Any]:
    if text == "empty":
        bounds: list[Any] = [None, None]
    else:
        bounds = [None if word is None else part(word) for word in _doubled(text[1:-1])]
    return {
        "lower": bounds[0],
        "upper": bounds[1],
        "lower_inc": text[0] == "[",
        "upper_inc": text[-1] == "]",
        "empty": text == "empty",
    }


def read_multirange(text: str, part: Part) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    word, inside = "", False
    for character in text[1:-1]:
        if character == '"':
            inside = not inside
        if not word and character == ",":
            continue
        word += character
        if character in ")]" and not inside:
            found.append(read_range(word, part))
            word = ""
    return found


def read_hstore(text: str) -> dict[str, str | None]:
    source, found = io.StringIO(text), dict[str, str | None]()
    while source.read(1) == '"':
        key = _quoted(source)
        assert source.read(2) == "=>"
        if source.read(1) == '"':
            found[key] = _quoted(source)
        else:
            assert source.read(3) == "ULL"
            found[key] = None
        source.read(2)  # a comma and a space
    return found
